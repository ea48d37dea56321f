"""Images: loading, the patch grid, and the image processors."""

"""Run, serve, quantize and fine-tune the Pixtral family of vision-language models."""

// Addresses under which the page shows images that the browser holds.

/** Object URLs by the id of the image; `blobOf` finds bytes that have not been shown yet. */
export class ImageUrls {
  #urls = new Map();

  constructor(blobOf) {
    this.blobOf = blobOf;
  }

  /** Sets the image as the source of an <img>, now or when its bytes have been read. */
  async show(img, id) {
    const url = this.#urls.get(id) ?? (await this.#read(id));
    if (url) img.src = url;
    else img.closest(".gridded, .tile")?.classList.add("lost");
  }

  /** Takes the bytes of an image that is not in the store yet. */
  add(image) {
    if (!this.#urls.has(image.id)) this.#urls.set(image.id, URL.createObjectURL(image.blob));
  }

  /** Revokes all URLs but these. */
  keepOnly(ids) {
    const kept = new Set(ids);
    for (const [id, url] of this.#urls) {
      if (kept.has(id)) continue;
      URL.revokeObjectURL(url);
      this.#urls.delete(id);
    }
  }

  async #read(id) {
    const blob = await this.blobOf(id);
    if (blob && !this.#urls.has(id)) this.#urls.set(id, URL.createObjectURL(blob));
    return this.#urls.get(id) ?? null;
  }
}

// Images of files: decoded by the browser, measured by the server, sent unchanged where that is possible.

import { grid, pages } from "./api.js";
import { bytes, count, newId, plural } from "./dom.js";

const READ_BY_SERVER = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]);
const KEEP_BELOW = 2e6; // bytes; larger files are sent at the size that the model sees: all go with every question

/** A file that cannot become an image; the message is for the user. */
export class ImageError extends Error {}

/**
 * {id, name, type, blob, width, height, detail, grid, scaled} of a file.
 * `grid` is {rows, cols, tokens, width, height}: what the model will see.
 * A PDF has the number of its `pages` and, as its grid, their tokens alone.
 */
export async function imageOf(file, { detail, maxPixels }) {
  const name = file.name || "image";
  if (file.type === "application/pdf") return documentOf(file, name, detail);
  const image = await decoded(file, name);
  let { naturalWidth: width, naturalHeight: height } = image;
  if (!width || !height) [width, height] = [512, 512]; // a drawing without a size of its own
  const measured = await grid(width, height, detail);
  let blob = file;
  let scaled = false;
  if (file.size > KEEP_BELOW || width * height > maxPixels) {
    blob = await redrawn(image, measured.width, measured.height, name);
    scaled = true;
  } else if (!READ_BY_SERVER.has(file.type)) {
    blob = await redrawn(image, width, height, name);
  }
  return { id: newId(), name, type: blob.type, blob, width, height, detail, grid: measured, scaled };
}

/** The image measured anew for another level of detail. */
export async function remeasured(image, detail) {
  if (image.pages) return { ...(await documentOf(image.blob, image.name, detail)), id: image.id };
  return { ...image, detail, grid: await grid(image.width, image.height, detail) };
}

/** The bytes as a data: address. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ImageError("An image can no longer be read; remove it and add it again."));
    reader.readAsDataURL(blob);
  });
}

/** One line about an image. */
export function describe(image) {
  const { grid: g } = image;
  if (image.pages) return `${plural(image.pages, "page")}, ${plural(g.tokens, "token")}`;
  const seen = g.width === image.width && g.height === image.height ? "" : ` → ${g.width} × ${g.height}`;
  return `${image.width} × ${image.height}${seen} pixels, ${g.rows} × ${g.cols} patches, ${count(g.tokens)} tokens`;
}

/** In which form an image is sent. */
export function sentAs(image) {
  const size = bytes(image.blob.size);
  return image.scaled ? `scaled down here to what the model sees, ${size}` : size;
}

async function documentOf(file, name, detail) {
  const grids = await pages(await dataUrl(file), detail);
  const tokens = grids.reduce((sum, page) => sum + page.tokens, 0);
  return {
    id: newId(),
    name,
    type: file.type,
    blob: file,
    detail,
    pages: grids.length,
    grid: { tokens },
    scaled: false,
  };
}

async function decoded(file, name) {
  const image = new Image();
  const address = URL.createObjectURL(file);
  image.src = address;
  try {
    await image.decode();
  } catch {
    throw new ImageError(`“${name}” is not an image that this browser can show. Use PNG, JPEG, WebP or GIF.`);
  } finally {
    URL.revokeObjectURL(address);
  }
  return image;
}

/** The image drawn at another size, over white as the model sees it. */
async function redrawn(image, width, height, name) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  if (!context) throw new ImageError(`“${name}” is too large for this browser.`);
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new ImageError(`“${name}” is too large for this browser.`);
  return blob;
}

// The student in this browser: a photo becomes a code here, and only the code is sent on.

import * as ort from "/runtime/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = "/runtime/";
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

let session = null;

async function load(headers) {
  const answer = await fetch("/v1/encoder.onnx", { headers });
  if (!answer.ok) throw new Error(`the encoder could not be fetched (${answer.status})`);
  return ort.InferenceSession.create(new Uint8Array(await answer.arrayBuffer()), { executionProviders: ["wasm"] });
}

/** Red, green and blue of a photo, turned as its tag says, its values as they stand in the file. */
async function pixels(file, most) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  if (width * height > most) throw new Error(`an image of ${width} x ${height} pixels, more than ${most}; make it smaller`);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  let rgba = context.getImageData(0, 0, width, height).data;
  if (seeThrough(rgba)) rgba = straight(bitmap) ?? rgba;
  bitmap.close();
  const rgb = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    rgb[to] = rgba[from]; rgb[to + 1] = rgba[from + 1]; rgb[to + 2] = rgba[from + 2];
  }
  return { rgb, width, height };
}

function seeThrough(rgba) {
  for (let place = 3; place < rgba.length; place += 4) if (rgba[place] !== 255) return true;
  return false;
}

/** A canvas keeps colours multiplied by their alpha, which cannot be undone; a texture keeps what lies under it. */
function straight(bitmap) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(bitmap.width, bitmap.height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const rgba = new Uint8Array(4 * bitmap.width * bitmap.height);
  gl.readPixels(0, 0, bitmap.width, bitmap.height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return rgba;
}

self.onmessage = async ({ data: { number, file, headers, most } }) => {
  try {
    session ??= load(headers);
    const encoder = await session.catch((error) => { session = null; throw error; });
    const began = performance.now();
    const { rgb, width, height } = await pixels(file, most);
    const decoded = performance.now();
    const { codes } = await encoder.run({ image: new ort.Tensor("uint8", rgb, [height, width, 3]) });
    self.postMessage({ number, code: Uint8Array.from(codes.data),
                       milliseconds: { decode: decoded - began, encode: performance.now() - decoded } });
  } catch (error) {
    self.postMessage({ number, problem: String(error.message ?? error) });
  }
};

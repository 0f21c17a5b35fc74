// An exported encoder in the page: squares of the size that the model sees here, and photos in the service's own worker.

import * as ort from "/runtime/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = "/runtime/";
ort.env.wasm.numThreads = self.crossOriginIsolated ? Number(new URLSearchParams(location.search).get("threads")) : 1;

const bytes = async (address) => new Uint8Array(await (await fetch(address)).arrayBuffer());
const session = await ort.InferenceSession.create(await bytes("/encoder.onnx"), { executionProviders: ["wasm"] });
const photo = await (await fetch("/photo.jpg")).blob();
const worker = new Worker("/worker.js", { type: "module" });
let square = null;

/** Codes of squares, which come and go as text of base64. */
export const codes = async (text, size) => {
  const pixels = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const images = new ort.Tensor("uint8", pixels, [pixels.length / (3 * size * size), size, size, 3]);
  square ??= images;
  const found = await session.run({ images });
  return btoa(String.fromCharCode(...found.codes.data));
};

/** Milliseconds of encoding the first square that was given. */
export const encode = async () => {
  const began = performance.now();
  await session.run({ images: square });
  return performance.now() - began;
};

/** The code of the photo, and the milliseconds from its file to that. */
export const query = () => new Promise((resolve, reject) => {
  worker.onmessage = ({ data: { code, milliseconds, problem } }) => {
    if (problem) reject(new Error(problem));
    else resolve([Array.from(code), milliseconds.decode + milliseconds.encode]);
  };
  worker.onerror = ({ message }) => reject(new Error(message));
  worker.postMessage({ number: 0, file: photo, headers: {}, most: 1e9 });
});

export const threads = () => ort.env.wasm.numThreads;

// A picture's labels by an exported model, in ONNX Runtime's WebAssembly. With --labels all that is done to a picture is in the file.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more need a page that is isolated from other origins

const loaded = Promise.all([
  ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] }),
  fetch("classes.json").then((response) => response.json()),
]);

/** The classes of the model: {classes: [name, ...], palette: [[red, green, blue], ...]}. */
export const classes = async () => (await loaded)[1];

/** RGB of a picture file, upright and without color management: {width, height, data: Uint8Array of height * width * 3}. */
async function pixels(file) {
  const bitmap = await createImageBitmap(file, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    data[to++] = rgba[from];
    data[to++] = rgba[from + 1];
    data[to++] = rgba[from + 2];
  }
  return { width, height, data };
}

/** Train ids of a picture file, in its own size: {width, height, labels: Uint8Array of height * width}. */
export async function segment(file) {
  const [session] = await loaded;
  const { width, height, data } = await pixels(file);
  const results = await session.run({ pictures: new ort.Tensor("uint8", data, [1, height, width, 3]) });
  return { width, height, labels: results.labels.data };
}

// A folder of pdlib.interop.onnx.save_for_page: one graph, and for each network its weights.
import * as ort from "./ort/ort.wasm.min.mjs";
import { schedule as scheduleOf, timeOf, xHat } from "./diffusion.js";
import { unpack, load } from "./weights.js";

ort.env.wasm.numThreads = 1; // more would need a server that sends headers
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

/** What the manifest says, and open(name): the promise of a denoiser (z, t, label) ↦ promise of x̂. */
export async function openFolder(folder) {
  const [manifest, graph] = await Promise.all([
    load(`${folder}/manifest.json`), load(`${folder}/graph.onnx`, "arrayBuffer"),
  ]);
  const open = async (name) => {
    const { prediction, shape, classes, ...about } = manifest.networks[name];
    const weights = unpack(await load(`${folder}/${name}.q16`, "arrayBuffer"));
    const session = await ort.InferenceSession.create(new Uint8Array(graph), {
      executionProviders: ["wasm"],
      externalData: [{ path: "weights", data: new Uint8Array(weights.buffer) }],
    });
    const schedule = scheduleOf(about.schedule), size = shape.reduce((a, b) => a * b);
    const denoiser = async (z, t, label = 0) => {
      const count = z.length / size, alphaSigma = schedule(t);
      const feeds = {
        z: new ort.Tensor("float32", Float32Array.from(z), [count, ...shape]),
        time: new ort.Tensor("float32", new Float32Array(count).fill(timeOf(alphaSigma)), [count]),
      };
      if (classes) feeds.labels = new ort.Tensor("int64", new BigInt64Array(count).fill(BigInt(label)), [count]);
      const { output } = await session.run(feeds);
      return xHat(prediction, output.data, z, alphaSigma, size);
    };
    return Object.assign(denoiser, { schedule, grid: about.grid, shape, classes });
  };
  return { manifest, open };
}

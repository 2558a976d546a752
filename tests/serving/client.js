// Asks a model server by gRPC: node client.js PROTOSET ADDRESS. Prints what came as JSON.
const fs = require("fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [protoset, address] = process.argv.slice(2);
const options = { keepCase: true, longs: String, enums: String };
const files = loader.loadFileDescriptorSetFromBuffer(fs.readFileSync(protoset), options);
const services = grpc.loadPackageDefinition(files);
const credentials = grpc.credentials.createInsecure();
const prediction = new services.tensorflow.serving.PredictionService(address, credentials);
const model = new services.tensorflow.serving.ModelService(address, credentials);
const streaming = new services.transduce.serving.StreamingService(address, credentials);

const call = (client, method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, (error, response) => (error ? reject(error) : resolve(response))));

const floats = (values) => ({
  dtype: "DT_FLOAT",
  tensor_shape: { dim: [{ size: values.length }] },
  float_val: values,
});

// Of descriptors, the loader makes a map a list of its entries, which is what goes over the wire.
const entries = (map) => Object.entries(map).map(([key, value]) => ({ key, value }));
const map = (list) => Object.fromEntries(list.map(({ key, value }) => [key, value]));

const half = (values, name = "half_plus") =>
  ({ model_spec: { name }, inputs: entries({ x: floats(values) }) });

const stream = (requests) =>
  new Promise((resolve, reject) => {
    const responses = [];
    const both = streaming.PredictStream();
    both.on("data", (response) => responses.push(map(response.outputs).y.float_val));
    both.on("error", reject);
    both.on("end", () => resolve(responses));
    requests.forEach((request) => both.write(request));
    both.end();
  });

async function main() {
  const predicted = await call(prediction, "Predict", half([1, 2]));
  const words = await call(prediction, "Predict", {
    model_spec: { name: "words" },
    inputs: entries({
      words: {
        dtype: "DT_STRING",
        tensor_shape: { dim: [{ size: 2 }] },
        string_val: [Buffer.from("one"), Buffer.from("四")],
      },
    }),
    output_filter: ["ids"],
  });
  const status = await call(model, "GetModelStatus", { model_spec: { name: "half_plus" } });
  const metadata = await call(prediction, "GetModelMetadata", {
    model_spec: { name: "half_plus" },
    metadata_field: ["signature_def"],
  });
  const missing = await call(prediction, "Predict", half([1], "none")).catch((error) => error);
  console.log(JSON.stringify({
    predicted: map(predicted.outputs).y.float_val,
    version: Number(predicted.model_spec.version.value),
    states: status.model_version_status.map((each) => each.state),
    signatures: map(metadata.metadata).signature_def.value.includes("serving_default"),
    words: map(words.outputs).ids.int64_val,
    missing: [missing.code, missing.details],
    streamed: await stream([half([0]), half([1]), half([2])]),
  }));
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });

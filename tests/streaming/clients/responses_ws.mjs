// `ResponsesWS` of the official npm package, unmodified: lanes, chaining, an error that leaves the others running.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { ResponsesWS } from "openai/resources/responses/ws";

const [url] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any" });
const socket = new ResponsesWS(client);
const events = [];
let wake = () => {};
socket.on("event", (event) => {
  events.push(event);
  wake();
});
socket.on("error", (error) => {
  events.push(error.error ?? error);
  wake();
});

async function heard(condition) {
  for (;;) {
    const found = events.find(condition);
    if (found) return found;
    await new Promise((resolve) => (wake = resolve));
  }
}
const ended = (lane) => (event) => /^response\.(completed|incomplete|failed)$/.test(event.type) && event.stream_id === lane;
const text = (response) => response.output.map((item) => item.content.map((part) => part.text).join("")).join("");
const joined = (lane) =>
  events
    .filter((event) => event.type === "response.output_text.delta" && event.stream_id === lane)
    .map((event) => event.delta)
    .join("");

const common = { type: "response.create", model: "smollm2-135m", temperature: 0, max_output_tokens: 40 };
socket.send({ ...common, stream_id: "a", input: "What is the capital of France?" });
socket.send({ ...common, stream_id: "b", input: "Name three primary colours." });
const [a, b] = [await heard(ended("a")), await heard(ended("b"))];
for (const end of [a, b]) assert.equal(text(end.response), joined(end.stream_id));
assert.match(text(a.response), /Paris/);
for (const lane of ["a", "b"]) {
  const numbers = events.filter((event) => event.stream_id === lane).map((event) => event.sequence_number);
  assert.deepEqual(numbers, [...numbers].sort((x, y) => x - y));
}

socket.send({ ...common, stream_id: "c", input: "And of Italy?", previous_response_id: a.response.id });
const c = await heard(ended("c"));
assert.match(text(c.response), /Rome/);
assert.equal(c.response.previous_response_id, a.response.id);
assert.ok(c.response.usage.input_tokens > a.response.usage.total_tokens - 10);

socket.send({ ...common, stream_id: "d", input: "x", temperature: 9 });
const refused = await heard((event) => event.type === "error");
assert.equal(refused.status, 400);
assert.equal(refused.error.param, "temperature");

socket.close();
console.log("ok");

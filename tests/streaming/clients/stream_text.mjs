// `streamText` with `@ai-sdk/openai-compatible`, unmodified: server-sent events, usage, a stop string, an abort.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [url] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "jitney", baseURL: `${url}/v1`, includeUsage: true });
const model = provider("smollm2-135m");
const common = { model, temperature: 0, maxOutputTokens: 40, maxRetries: 0 };

const streamed = streamText({ ...common, prompt: "What is the capital of France?" });
let text = "";
for await (const delta of streamed.textStream) text += delta;
assert.match(text, /Paris/);
assert.equal(await streamed.text, text);
assert.equal(await streamed.finishReason, "stop");
const usage = await streamed.usage;
assert.ok(usage.inputTokens > 5 && usage.outputTokens > 3);

const plain = await generateText({ ...common, prompt: "What is the capital of France?" });
assert.equal(plain.text, text);

const stopped = streamText({ ...common, prompt: "What is the capital of France?", stopSequences: ["Paris"] });
assert.ok(!(await stopped.text).includes("Paris"));

const abort = new AbortController();
const long = streamText({
  ...common,
  prompt: "Tell me a long story about a fox.",
  maxOutputTokens: 800,
  abortSignal: abort.signal,
});
const kinds = [];
for await (const part of long.fullStream) {
  kinds.push(part.type);
  if (kinds.filter((kind) => kind === "text-delta").length === 5) abort.abort();
}
assert.equal(kinds.at(-1), "abort");

await assert.rejects(generateText({ ...common, prompt: "x", temperature: 9 }), /temperature/);
console.log("ok");

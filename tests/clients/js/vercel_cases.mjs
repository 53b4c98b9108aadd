// The Vercel AI SDK, `ai`, with `@ai-sdk/openai-compatible`.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embed, generateImage, generateText, streamText, tool } from "ai";
import { z } from "zod";

import { CALLS, CITY, SPEC, TEXT, VECTOR, equal, prompt, raises, run, survivals } from "./cases.mjs";

function provider(apiKey) {
  const features = { includeUsage: true, supportsStructuredOutputs: true };
  return createOpenAICompatible({ name: "byoai", baseURL: SPEC.base_url, apiKey, ...features });
}

const byoai = provider(SPEC.key);
const model = byoai(SPEC.model);
const output = Output.object({ schema: z.object({ city: z.string(), population: z.number() }) });
const tools = Object.fromEntries(
  CALLS.map(([name, values]) => {
    const fields = Object.keys(values).map((key) => [key, z.string()]);
    return [name, tool({ inputSchema: z.object(Object.fromEntries(fields)) })];
  }),
);

async function ask(does, name, more = {}) {
  return (await generateText({ model, prompt: prompt(does, name), ...more })).text;
}

function stream(does, name, more = {}) {
  const report = () => {}; // what fails is thrown by the answer, too
  return streamText({ model, prompt: prompt(does, name), onError: report, ...more });
}

function called(calls) {
  return calls.map((it) => [it.toolName, it.input]);
}

await run("ai", {
  async chat() {
    equal(await ask("chat", "chat"), TEXT);
  },
  async stream() {
    const answer = stream("chat", "stream");
    let text = "";
    for await (const piece of answer.textStream) text += piece;
    equal([text, (await answer.usage).totalTokens], [TEXT, 17]);
  },
  async tools() {
    const answer = await generateText({ model, prompt: prompt("tools", "tools"), tools });
    equal(called(answer.toolCalls), CALLS);
  },
  async tools_stream() {
    equal(called(await stream("tools", "tools_stream", { tools }).toolCalls), CALLS);
  },
  async json_schema() {
    const asked = { model, prompt: prompt("json_schema", "json_schema"), output };
    equal((await generateText(asked)).output, CITY);
  },
  async json_schema_stream() {
    equal(await stream("json_schema", "json_schema_stream", { output }).output, CITY);
  },
  async embeddings_float() {
    const value = prompt("embed", "embeddings_float");
    equal((await embed({ model: byoai.embeddingModel(SPEC.model), value })).embedding, VECTOR);
  },
  async image_input() {
    const picture = { type: "file", mediaType: "image/png", data: SPEC.png };
    const content = [{ type: "text", text: prompt("image", "image_input") }, picture];
    const answer = await generateText({ model, messages: [{ role: "user", content }] });
    equal(answer.text, "one pixel");
  },
  async image_generation() {
    const asked = { model: byoai.imageModel(SPEC.model), prompt: prompt("picture", "image_generation") };
    equal((await generateImage(asked)).image.base64, SPEC.png);
  },
  // Leaves after the first text; the provider then waits for its connection to end.
  async abort() {
    const controller = new AbortController();
    const answer = stream("abort", "abort", { abortSignal: controller.signal });
    for await (const piece of answer.textStream) {
      if (piece) break;
    }
    controller.abort();
    equal(await ask("left", "abort"), TEXT);
  },
  async wrong_key() {
    const refused = ask("chat", "wrong_key", { model: provider(SPEC.wrong_key)(SPEC.model) });
    equal((await raises(APICallError, refused)).statusCode, 401);
  },
  async rate_limit() {
    const refused = ask("always:429-retry-after-1", "rate_limit", { maxRetries: 0 });
    const error = await raises(APICallError, refused);
    equal([error.statusCode, error.responseHeaders["retry-after"]], [429, "1"]);
  },
  ...survivals(ask),
});

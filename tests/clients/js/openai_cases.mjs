// The official `openai` library for JavaScript.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { CALLS, CITY, SPEC, TEXT, VECTOR, equal, parameters, prompt, raises, run, survivals } from "./cases.mjs";

const options = { baseURL: SPEC.base_url, apiKey: SPEC.key };
const client = new OpenAI(options);
const City = zodResponseFormat(z.object({ city: z.string(), population: z.number() }), "city");
const tools = CALLS.map(([name, values]) => ({
  type: "function",
  function: { name, parameters: parameters(values), strict: true },
}));

function asking(does, name, more = {}) {
  return { model: SPEC.model, messages: [{ role: "user", content: prompt(does, name) }], ...more };
}

async function ask(does, name, by = client) {
  const answer = await by.chat.completions.create(asking(does, name));
  return answer.choices[0].message.content;
}

function called(message) {
  return message.tool_calls.map((it) => [it.function.name, JSON.parse(it.function.arguments)]);
}

function embed(name, more = {}) {
  return client.embeddings.create({ model: SPEC.model, input: prompt("embed", name), ...more });
}

await run("openai", {
  async chat() {
    equal(await ask("chat", "chat"), TEXT);
  },
  async stream() {
    const more = { stream: true, stream_options: { include_usage: true } };
    const answer = await client.chat.completions.create(asking("chat", "stream", more));
    let text = "";
    const totals = [];
    for await (const chunk of answer) {
      text += chunk.choices[0]?.delta.content ?? "";
      if (chunk.usage) totals.push(chunk.usage.total_tokens);
    }
    equal([text, totals], [TEXT, [17]]);
  },
  async tools() {
    const more = { tools, parallel_tool_calls: true };
    const answer = await client.chat.completions.create(asking("tools", "tools", more));
    equal(called(answer.choices[0].message), CALLS);
  },
  async tools_stream() {
    const answer = client.chat.completions.stream(asking("tools", "tools_stream", { tools }));
    equal(called((await answer.finalChatCompletion()).choices[0].message), CALLS);
  },
  async json_schema() {
    const asked = asking("json_schema", "json_schema", { response_format: City });
    const answer = await client.chat.completions.parse(asked);
    equal(answer.choices[0].message.parsed, CITY);
  },
  async json_schema_stream() {
    const asked = asking("json_schema", "json_schema_stream", { response_format: City });
    const answer = await client.chat.completions.stream(asked).finalChatCompletion();
    equal(answer.choices[0].message.parsed, CITY);
  },
  async embeddings_float() {
    const answer = await embed("embeddings_float", { encoding_format: "float" });
    equal(answer.data[0].embedding, VECTOR);
  },
  // The library asks for base64 by itself and decodes it.
  async embeddings_base64() {
    equal(Array.from((await embed("embeddings_base64")).data[0].embedding), VECTOR);
  },
  async image_input() {
    const picture = { type: "image_url", image_url: { url: `data:image/png;base64,${SPEC.png}` } };
    const content = [{ type: "text", text: prompt("image", "image_input") }, picture];
    const messages = [{ role: "user", content }];
    const answer = await client.chat.completions.create({ model: SPEC.model, messages });
    equal(answer.choices[0].message.content, "one pixel");
  },
  async image_generation() {
    const asked = { model: SPEC.model, prompt: prompt("picture", "image_generation") };
    equal((await client.images.generate(asked)).data[0].b64_json, SPEC.png);
  },
  // Leaves after the first text; the provider then waits for its connection to end.
  async abort() {
    const answer = await client.chat.completions.create(asking("abort", "abort", { stream: true }));
    for await (const chunk of answer) {
      if (chunk.choices[0]?.delta.content) break;
    }
    answer.controller.abort();
    equal(await ask("left", "abort"), TEXT);
  },
  async wrong_key() {
    const by = new OpenAI({ ...options, apiKey: SPEC.wrong_key });
    await raises(OpenAI.AuthenticationError, ask("chat", "wrong_key", by));
  },
  async rate_limit() {
    const by = new OpenAI({ ...options, maxRetries: 0 });
    const error = await raises(OpenAI.RateLimitError, ask("always:429-retry-after-1", "rate_limit", by));
    equal(error.headers.get("retry-after"), "1");
  },
  ...survivals(ask),
});

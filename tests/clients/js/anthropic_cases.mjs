// The official `@anthropic-ai/sdk` library for JavaScript.

import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

import { CALLS, CITY, SPEC, TEXT, equal, parameters, prompt, raises, run, survivals } from "./cases.mjs";

const baseURL = SPEC.base_url.replace(/\/v1$/, ""); // the library adds /v1 itself
const client = new Anthropic({ baseURL, authToken: SPEC.key, apiKey: null });
const output_config = {
  format: zodOutputFormat(z.object({ city: z.string(), population: z.number() })),
};
const tools = CALLS.map(([name, values]) => ({ name, input_schema: parameters(values) }));

function asking(does, name, more = {}) {
  const messages = [{ role: "user", content: prompt(does, name) }];
  return { model: SPEC.model, max_tokens: 1024, messages, ...more };
}

function textOf(answer) {
  return answer.content.map((it) => it.text ?? "").join("");
}

async function ask(does, name, by = client) {
  return textOf(await by.messages.create(asking(does, name)));
}

function called(answer) {
  return answer.content.filter((it) => it.type === "tool_use").map((it) => [it.name, it.input]);
}

await run("@anthropic-ai/sdk", {
  async chat() {
    equal(await ask("chat", "chat"), TEXT);
  },
  async stream() {
    let text = "";
    const answer = client.messages.stream(asking("chat", "stream")).on("text", (it) => {
      text += it;
    });
    const { stop_reason, usage } = await answer.finalMessage();
    equal([text, stop_reason, usage.input_tokens, usage.output_tokens], [TEXT, "end_turn", 12, 5]);
  },
  async tools() {
    equal(called(await client.messages.create(asking("tools", "tools", { tools }))), CALLS);
  },
  async tools_stream() {
    const answer = client.messages.stream(asking("tools", "tools_stream", { tools }));
    equal(called(await answer.finalMessage()), CALLS);
  },
  async json_schema() {
    const asked = asking("json_schema", "json_schema", { output_config });
    equal((await client.messages.parse(asked)).parsed_output, CITY);
  },
  async json_schema_stream() {
    const asked = asking("json_schema", "json_schema_stream", { output_config });
    equal((await client.messages.stream(asked).finalMessage()).parsed_output, CITY);
  },
  async image_input() {
    const source = { type: "base64", media_type: "image/png", data: SPEC.png };
    const text = { type: "text", text: prompt("image", "image_input") };
    const messages = [{ role: "user", content: [{ type: "image", source }, text] }];
    const answer = await client.messages.create(asking("image", "image_input", { messages }));
    equal(textOf(answer), "one pixel");
  },
  // Leaves after the first text; the provider then waits for its connection to end.
  async abort() {
    const answer = await client.messages.create(asking("abort", "abort", { stream: true }));
    for await (const event of answer) {
      if (event.type === "content_block_delta") break;
    }
    answer.controller.abort();
    equal(await ask("left", "abort"), TEXT);
  },
  async wrong_key() {
    const by = new Anthropic({ baseURL, authToken: SPEC.wrong_key, apiKey: null });
    await raises(Anthropic.AuthenticationError, ask("chat", "wrong_key", by));
  },
  async api_key() {
    const by = new Anthropic({ baseURL, apiKey: SPEC.key, authToken: null });
    equal(await ask("chat", "api_key", by), TEXT);
  },
  // The header in which earlier versions send the API key.
  async x_api_key() {
    const defaultHeaders = { "x-api-key": SPEC.key, authorization: null };
    const by = new Anthropic({ baseURL, apiKey: null, authToken: null, defaultHeaders });
    equal(await ask("chat", "x_api_key", by), TEXT);
  },
  async rate_limit() {
    const by = client.withOptions({ maxRetries: 0 });
    const error = await raises(Anthropic.RateLimitError, ask("always:429-retry-after-1", "rate_limit", by));
    equal(error.headers.get("retry-after"), "1");
  },
  ...survivals(ask),
});

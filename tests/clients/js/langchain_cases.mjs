// LangChain's integration of OpenAI for JavaScript, `@langchain/openai`.

import { HumanMessage } from "@langchain/core/messages";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import OpenAI from "openai";
import { z } from "zod";

import { CALLS, CITY, SPEC, TEXT, VECTOR, equal, parameters, prompt, raises, run, survivals } from "./cases.mjs";

function settings(more = {}) {
  const configuration = { baseURL: SPEC.base_url };
  return { model: SPEC.model, apiKey: SPEC.key, configuration, ...more };
}

const model = new ChatOpenAI(settings());
const withTools = model.bindTools(
  CALLS.map(([name, values]) => ({
    type: "function",
    function: { name, parameters: parameters(values) },
  })),
);
const City = z.object({ city: z.string(), population: z.number() });
const structured = model.withStructuredOutput(City, { name: "city", method: "jsonSchema" });

async function ask(does, name, by = model) {
  return (await by.invoke(prompt(does, name))).content;
}

/** A streamed answer, its chunks added up as an application does it. */
async function collect(does, name, by) {
  let whole;
  for await (const chunk of await by.stream(prompt(does, name))) {
    whole = whole === undefined ? chunk : whole.concat(chunk);
  }
  return whole;
}

function called(answer) {
  return answer.tool_calls.map((it) => [it.name, it.args]);
}

function embed(name, more = {}) {
  return new OpenAIEmbeddings(settings(more)).embedQuery(prompt("embed", name));
}

await run("@langchain/openai", {
  async chat() {
    equal(await ask("chat", "chat"), TEXT);
  },
  async stream() {
    const answer = await collect("chat", "stream", model);
    equal([answer.content, answer.usage_metadata.total_tokens], [TEXT, 17]);
  },
  async tools() {
    equal(called(await withTools.invoke(prompt("tools", "tools"))), CALLS);
  },
  async tools_stream() {
    equal(called(await collect("tools", "tools_stream", withTools)), CALLS);
  },
  async json_schema() {
    equal(await structured.invoke(prompt("json_schema", "json_schema")), CITY);
  },
  async json_schema_stream() {
    let last;
    const answer = await structured.stream(prompt("json_schema", "json_schema_stream"));
    for await (const it of answer) last = it;
    equal(last, CITY);
  },
  async embeddings_float() {
    equal(await embed("embeddings_float", { encodingFormat: "float" }), VECTOR);
  },
  // The library asks for base64 by itself and decodes it.
  async embeddings_base64() {
    equal(Array.from(await embed("embeddings_base64")), VECTOR);
  },
  async image_input() {
    const picture = { type: "image_url", image_url: { url: `data:image/png;base64,${SPEC.png}` } };
    const content = [{ type: "text", text: prompt("image", "image_input") }, picture];
    equal((await model.invoke([new HumanMessage({ content })])).content, "one pixel");
  },
  // Leaves after the first text; the provider then waits for its connection to end.
  async abort() {
    for await (const chunk of await model.stream(prompt("abort", "abort"))) {
      if (chunk.content) break;
    }
    equal(await ask("left", "abort"), TEXT);
  },
  async wrong_key() {
    const by = new ChatOpenAI(settings({ apiKey: SPEC.wrong_key }));
    const error = await raises(OpenAI.AuthenticationError, ask("chat", "wrong_key", by));
    equal(error.lc_error_code, "MODEL_AUTHENTICATION");
  },
  async rate_limit() {
    const by = new ChatOpenAI(settings({ maxRetries: 0 }));
    const refused = ask("always:429-retry-after-1", "rate_limit", by);
    const error = await raises(OpenAI.RateLimitError, refused);
    equal([error.lc_error_code, error.headers.get("retry-after")], ["MODEL_RATE_LIMIT", "1"]);
  },
  ...survivals(ask, { but: ["409"] }), // it never repeats after a 409
});

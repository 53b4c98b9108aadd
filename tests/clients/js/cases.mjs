// Runs a library's cases and prints what the application saw, one JSON line a case.

import { deepStrictEqual } from "node:assert";
import { readFileSync } from "node:fs";

const LONGEST_MS = 30_000;

export const TEXT = "Hello there";
export const CALLS = [
  ["get_weather", { city: "Paris" }],
  ["get_time", { zone: "CET" }],
];
export const CITY = { city: "Paris", population: 2100000 };
export const VECTOR = [0.25, -0.5, 1.0];

/** The route under test, as the driver gives it on the command line. */
export const SPEC = JSON.parse(process.argv[2]);

/** A prompt that orders the provider's answer and names the case. */
export function prompt(does, name) {
  return `[[${does} ${SPEC.prefix}/${name}]]`;
}

/** The schema of a tool's arguments. */
export function parameters(values) {
  return {
    type: "object",
    properties: Object.fromEntries(Object.keys(values).map((key) => [key, { type: "string" }])),
    required: Object.keys(values),
    additionalProperties: false,
  };
}

/** Compare what the library returned. */
export function equal(found, wanted) {
  deepStrictEqual(found, wanted);
}

/** The call must end with exactly this class of the library; returns the error. */
export async function raises(kind, call) {
  const error = await call.then(
    (answer) => new Error(`${JSON.stringify(answer)} instead of ${kind.name}`),
    (raised) => raised,
  );
  if (error.constructor !== kind) throw error;
  return error;
}

const FAULTS = { 429: "429-retry-after-1", 503: "503", 408: "408", 409: "409", 500: "500", 504: "504" };

/** A case for each fault that the library's own retry must survive once. */
export function survivals(ask, { but = [] } = {}) {
  const survived = Object.entries(FAULTS).filter(([status]) => !but.includes(status));
  const cases = survived.map(([status, fault]) => {
    const name = `survives_${status}`;
    return [name, async () => equal(await ask(`once:${fault}`, name), TEXT)];
  });
  return Object.fromEntries(cases);
}

async function report(name, check) {
  let timer;
  const limit = new Promise((_, refuse) => {
    timer = setTimeout(() => refuse(new Error("the case took too long")), LONGEST_MS);
  });
  let problem = "";
  try {
    await Promise.race([check(), limit]);
  } catch (error) {
    problem = `${error.constructor.name}: ${error.message}`;
  }
  clearTimeout(timer);
  console.log(JSON.stringify({ case: name, problem }));
}

/** Print the library's version, then a line for each case; all run at the same time. */
export async function run(library, cases) {
  const manifest = new URL(`node_modules/${library}/package.json`, import.meta.url);
  console.log(JSON.stringify({ version: JSON.parse(readFileSync(manifest, "utf8")).version }));
  await Promise.all(Object.entries(cases).map(([name, check]) => report(name, check)));
}

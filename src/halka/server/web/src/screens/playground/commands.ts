// A column's request as a program sends it.
import { curl } from "../../parts/curl";
import type { Command } from "../../parts/terminal";
import { session } from "../../session";

export function commandsOf(body: Record<string, unknown>): Command[] {
  const keys = session.value?.keys_required ?? false;
  const { halka, ...plain } = body;
  const fields = Object.entries({ ...plain, ...(halka ? { extra_body: { halka } } : {}) });
  const python = [
    ...(keys ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${location.origin}/v1`)}, api_key=${keys ? 'os.environ["HALKA_API_KEY"]' : '"none"'})`,
    "answer = client.chat.completions.create(",
    ...fields.map(([name, value]) => `    ${name}=${JSON.stringify(value)},`),
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
  return [
    { id: "curl", text: curl("/v1/chat/completions", { json: body }) },
    { id: "python", title: "Python", text: python },
  ];
}

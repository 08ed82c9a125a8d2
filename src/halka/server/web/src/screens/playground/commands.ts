// A column's request as a program sends it.
import { quoted, type Command } from "../../parts/terminal";
import { session } from "../../session";

export function commandsOf(body: Record<string, unknown>): Command[] {
  const url = location.origin;
  const keys = session.value?.keys_required ?? false;
  const curl = [
    `curl ${quoted(`${url}/v1/chat/completions`)}`,
    "-H 'Content-Type: application/json'",
    ...(keys ? ['-H "Authorization: Bearer $HALKA_API_KEY"'] : []),
    `-d ${quoted(JSON.stringify(body))}`,
  ].join(" \\\n  ");
  const { halka, ...plain } = body;
  const fields = Object.entries({ ...plain, ...(halka ? { extra_body: { halka } } : {}) });
  const python = [
    ...(keys ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${url}/v1`)}, api_key=${keys ? 'os.environ["HALKA_API_KEY"]' : '"none"'})`,
    "answer = client.chat.completions.create(",
    ...fields.map(([name, value]) => `    ${name}=${JSON.stringify(value)},`),
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
  return [
    { id: "curl", title: "curl", text: curl },
    { id: "python", title: "Python", text: python },
  ];
}

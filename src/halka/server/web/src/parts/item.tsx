// One example with what was answered to it, beside what was expected, with the differences marked.
import "./item.css";
import { fill, words } from "../words/words";
import { differences } from "./differences";
import { comparable } from "./spelling";

export interface Item {
  item: number;
  prompt: string;
  reference: string;
  answers: { label: string; prediction: string }[];
}

/** Whether an answer is the expected one. */
export const isExpected = ({ prediction }: Item["answers"][number], { reference }: Item) => comparable(prediction).trim() === comparable(reference).trim();

export function OneItem({ item }: { item: Item }) {
  const w = words.value.compare;
  return (
    <article class="sheet stack" aria-label={fill(w.item, { n: item.item + 1 })}>
      <h3>{fill(w.item, { n: item.item + 1 })}</h3>
      <p class="plain-text" dir="auto">{item.prompt}</p>
      <div class="answers">
        <div class="expected">
          <h4>{w.expected}</h4>
          <p class="plain-text" dir="auto">{item.reference}</p>
        </div>
        {item.answers.map((answer) => (
          <div key={answer.label}>
            <h4>{answer.label} {isExpected(answer, item) && <span class="badge">{w.same}</span>}</h4>
            <p class="plain-text" dir="auto">
              {answer.prediction ? differences(answer.prediction, item.reference).map(({ text, same }, at) => (same ? text : <mark key={at}>{text}</mark>)) : <span class="hint">{w.nothing}</span>}
            </p>
          </div>
        ))}
      </div>
    </article>
  );
}

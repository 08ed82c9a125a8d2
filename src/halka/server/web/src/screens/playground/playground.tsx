// One prompt or conversation, answered by the bare base and any adapters side by side.
import "./playground.css";
import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import { collections as listCollections, models as listModels, type Collection, type Model } from "../../api";
import { Button } from "../../parts/button";
import { Checkbox, SelectField } from "../../parts/field";
import { useLoading } from "../../parts/loading";
import { Empty, Failure } from "../../parts/notice";
import { Waiting } from "../../parts/progress";
import { Terminal } from "../../parts/terminal";
import { go, parts, query } from "../../router";
import { fill, words } from "../../words/words";
import { Heading } from "../shown";
import { AnswerCard } from "./answer";
import { addColumn, addressOf, answering, changeColumn, columns, columnsFrom, type Column } from "./columns";
import { commandsOf } from "./commands";
import { Composer } from "./composer";
import { ask, askAgain, beginAnew, bodyOf, busy, closeColumn, firstRead, goBack, left, readBefore, turns, type Turn } from "./conversation";
import { useFollowing } from "./following";
import { draft } from "./settings";
import { TrainedWith } from "./trained-with";

export default function Playground() {
  const w = words.value.playground;
  const { value: models, failure, again } = useLoading(async () => {
    const loaded = await listModels();
    if (query.peek().has("model") || !columns.peek().length) columnsFrom(query.peek(), loaded);
    draft.value = query.peek().get("prompt") ?? draft.peek(); // of a link from elsewhere: the page writes none
    return loaded;
  }, []);
  const collections = useLoading(listCollections, []);
  const [asWritten, showAsWritten] = useState(false);
  const { conversation, end, toEnd } = useFollowing(busy() && models !== null);
  const address = addressOf();
  useLayoutEffect(() => { // not after painting: a reload finds what is shown
    if (models && (parts.peek()[0] ?? "playground") === "playground") go(address, { replace: true });
  }, [address, models, query.value]);
  useEffect(() => {
    if (turns.peek().length) toEnd();
  }, [models]);
  if (failure) return <><Heading title={w.title} lead={w.lead} /><Failure error={failure} again={again} /></>;
  if (!models) return <Waiting label={words.value.shell.loading} />;
  return (
    <div class="playground" style={{ "--columns": String(columns.value.length) }}>
      <Heading title={w.title} lead={w.lead}>
        {turns.value.length > 0 && (
          <div class="row">
            <Checkbox label={w.asWritten} checked={asWritten} onValue={showAsWritten} />
            <Button icon="add" onClick={beginAnew}>{w.newConversation}</Button>
          </div>
        )}
      </Heading>
      <Heads models={answering(models)} collections={collections.value ?? []} />
      <Failure error={collections.failure} again={collections.again} />
      <div ref={conversation} class="conversation">
        {turns.value.map((turn, at) => <TurnRow key={turn.id} turn={turn} last={at === turns.value.length - 1} asWritten={asWritten} />)}
        {turns.value.length === 0 && (
          <Empty icon="playground" title={w.empty} hint={models.some((model) => model.parent) ? w.emptyHint : w.noAdapters}>
            {left.value && <Button icon="again" onClick={goBack}>{w.goBack}</Button>}
          </Empty>
        )}
      </div>
      <Composer onAsk={() => {
        ask();
        toEnd();
      }}>
        {models[0] && draft.value && <TrainedWith base={models[0].id} />}
      </Composer>
      <div ref={end} class="end" />
      <Commands />
    </div>
  );
}

function Heads({ models, collections }: { models: Model[]; collections: Collection[] }) {
  const w = words.value.playground;
  const first = models.find((model) => !columns.value.some((column) => column.model === model.id)) ?? models[0];
  return (
    <section class="heads" aria-label={w.columns}>
      <div class="columns">
        {columns.value.map((column) => <Head key={column.id} column={column} models={models} collections={collections} />)}
      </div>
      {first && <Button kind="quiet" icon="add" onClick={() => addColumn(first.id)}>{w.addColumn}</Button>}
    </section>
  );
}

function Head({ column, models, collections }: { column: Column; models: Model[]; collections: Collection[] }) {
  const w = words.value.playground;
  const names = models.map((model) => model.id);
  const from = collections.map((collection) => collection.id);
  const shown = (name: string) => (name === models[0]?.id ? fill(w.base, { model: name }) : name);
  return (
    <div class="head">
      <div class="fields">
        <SelectField label={w.model} value={column.model} onValue={(model) => changeColumn(column.id, { model })}
          options={withOwn(names, column.model).map((value) => ({ value, text: shown(value) }))} />
        <SelectField label={w.documents} value={column.collection} onValue={(collection) => changeColumn(column.id, { collection })}
          options={withOwn(["", ...from], column.collection).map((value) => ({ value, text: value || w.noDocuments }))} />
      </div>
      {columns.value.length > 1 && (
        <Button kind="quiet" icon="close" label={fill(w.removeColumn, { model: column.model })} onClick={() => closeColumn(column.id)} />
      )}
    </div>
  );
}

function TurnRow({ turn, last, asWritten }: { turn: Turn; last: boolean; asWritten: boolean }) {
  const w = words.value.playground;
  const answers = turn.answers.value;
  return (
    <section class="turn">
      {turn.id === firstRead.value && <p class="hint unread">{w.unread}</p>}
      <div class="prompt">
        <h2 class="unseen">{w.you}</h2>
        <p class="plain-text" dir="auto">{turn.prompt}</p>
      </div>
      <div class="columns">
        {columns.value.map((column) => {
          const answer = answers[column.id];
          const again = last ? () => askAgain(turn, column) : null;
          if (answer) return <AnswerCard key={column.id} turn={turn} answer={answer} again={again} asWritten={asWritten} />;
          return (
            <div key={column.id} class="answer missing">
              {last && <Button icon="send" onClick={() => askAgain(turn, column)}>{fill(w.askToo, { model: column.model })}</Button>}
            </div>
          );
        })}
      </div>
    </section>
  );
}

function Commands() {
  const [chosen, choose] = useState("");
  const w = words.value.playground;
  const column = columns.value.find((candidate) => String(candidate.id) === chosen) ?? columns.value[0];
  if (!column || busy()) return null;
  const again = draft.value ? undefined : turns.value.at(-1);
  const prompt = draft.value || again?.prompt || w.example;
  return (
    <div class="commands">
      <Terminal commands={commandsOf(bodyOf(column, prompt, readBefore(again)))} />
      {columns.value.length > 1 && (
        <SelectField label={w.commandOf} value={String(column.id)} onValue={choose}
          options={columns.value.map(({ id, model, collection }) => ({ value: String(id), text: collection ? `${model}, ${collection}` : model }))} />
      )}
    </div>
  );
}

const withOwn = (names: string[], own: string) => (names.includes(own) ? names : [...names, own]);

// Starts the page: the reader's choices, the language, who is signed in; then the screens.
import "./style/tokens.css";
import "./style/base.css";
import "./style/parts.css";
import "./style/shell.css";
import { effect } from "@preact/signals";
import { render } from "preact";
import { App } from "./app";
import { applyChoices, language } from "./choices";
import { follow } from "./router";
import { speak } from "./words/words";

async function start(): Promise<void> {
  applyChoices();
  follow();
  await speak(language.value);
  effect(() => void speak(language.value));
  render(<App />, document.getElementById("page") as HTMLElement);
}

void start();

// Starts the page: the reader's choices, the language, who is signed in; then the screens.
import "./style/tokens.css";
import "./style/base.css";
import "./style/parts.css";
import "./style/shell.css";
import { effect } from "@preact/signals";
import { render } from "preact";
import { App } from "./app";
import { applyChoices, language } from "./choices";
import { follow, parts } from "./router";
import { screens } from "./screens/screens";
import { ask } from "./session";
import { speak } from "./words/words";

async function start(): Promise<void> {
  applyChoices();
  follow();
  const first = screens.find((screen) => screen.name === (parts.value[0] ?? "playground"));
  first?.load().catch(() => {}); // they begin together; what fails is asked for again where it is shown
  await Promise.all([speak(language.value), ask().catch(() => {})]);
  effect(() => void speak(language.value));
  render(<App />, document.getElementById("page") as HTMLElement);
}

void start();

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

const page = document.getElementById("page") as HTMLElement;

async function start(): Promise<void> {
  applyChoices();
  follow();
  const first = screens.find((screen) => screen.name === (parts.value[0] ?? "playground"));
  first?.load().catch(() => {}); // they begin together; what fails is asked for again where it is shown
  await Promise.all([speak(language.value), ask().catch(() => {})]);
  effect(() => void speak(language.value));
  render(<App />, page);
}

/** What is there before any language is. */
function Incomplete() {
  return (
    <main class="alone">
      <p lang="en">The page did not load completely.</p>
      <p lang="bn">পাতাটি পুরোপুরি লোড হয়নি।</p>
      <button type="button" class="button primary" onClick={() => location.reload()}>
        <span lang="en">Load again</span> · <span lang="bn">আবার লোড করুন</span>
      </button>
    </main>
  );
}

/** A file that is dropped beside its place must not be opened instead of the page. */
function keepFilesOut(event: DragEvent): void {
  const field = event.target instanceof HTMLInputElement && event.target.type === "file";
  if (event.defaultPrevented || field || !event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = "none";
}

addEventListener("dragover", keepFilesOut);
addEventListener("drop", keepFilesOut);
addEventListener("pageshow", ({ persisted }) => persisted && location.reload()); // who is here may be another by now

start().catch(() => render(<Incomplete />, page));

// The shell around every screen: skip link, navigation, choices, who is signed in; or the way in.
import { useEffect, useRef, useState } from "preact/hooks";
import { choose, language, LANGUAGES, theme, THEMES, type Language } from "./choices";
import { Button } from "./parts/button";
import { Choice } from "./parts/field";
import { Icon, Mark } from "./parts/icons";
import { Empty, Failure, Notice } from "./parts/notice";
import { Waiting } from "./parts/progress";
import { go, link, parts } from "./router";
import { Shown } from "./screens/shown";
import { screens } from "./screens/screens";
import { ask, may, session, signOut } from "./session";
import { SignIn } from "./sign-in";
import { fill, renewed, words } from "./words/words";

export function App() {
  const { shell } = words.value;
  const [failure, setFailure] = useState<unknown>(null);
  const asked = () => void ask().then(() => setFailure(null), setFailure);
  useEffect(() => {
    if (session.value === undefined) asked();
  }, []);
  if (session.value === undefined) {
    return <main class="alone">{failure ? <Failure error={failure} again={asked} /> : <Waiting label={shell.loading} />}</main>;
  }
  return session.value === null ? <SignIn /> : <Shell />;
}

function Shell() {
  const { shell } = words.value;
  const main = useRef<HTMLElement>(null);
  const [open, setOpen] = useState(false);
  const [name = "playground", ...rest] = parts.value;
  const path = [name, ...rest].join("/");
  const screen = screens.find((candidate) => candidate.name === name);
  const title = screen ? words.value[screen.name].title : shell.notFound;
  const first = useRef(true);
  useEffect(() => {
    setOpen(false);
    if (!first.current) main.current?.focus();
    first.current = false;
    scrollTo(0, 0);
  }, [path]);
  useEffect(() => {
    document.title = [...(screen ? [...rest].reverse() : []), title, shell.name].join(" · ");
  }, [path, title, shell.name]);
  return (
    <div class="shell">
      <a class="skip" href="#content" onClick={(event) => {
        event.preventDefault();
        main.current?.focus();
      }}>{shell.skip}</a>
      <header class="side">
        <div class="brand">
          <a href="/"><Mark /><strong>{shell.name}</strong></a>
          <Button kind="quiet" class="button quiet bare unfold" icon={open ? "close" : "menu"} label={shell.menu} aria-expanded={open}
            aria-controls="menu" onClick={() => setOpen(!open)} />
        </div>
        <div id="menu" class={open ? "menu open" : "menu"}>
          <nav aria-label={shell.screens}>
            <ul>
              {screens.filter((entry) => may(entry.needs)).map((entry) => (
                <li key={entry.name}>
                  <a href={link(entry.name)} aria-current={entry.name === name ? "page" : undefined} onClick={() => setOpen(false)}>
                    <Icon name={entry.name} />{words.value[entry.name].title}
                  </a>
                </li>
              ))}
            </ul>
          </nav>
          <Choices />
          <SignedIn />
        </div>
      </header>
      <main id="content" ref={main} tabIndex={-1}>
        {screen
          ? <Shown key={screen.name} screen={screen} rest={rest} />
          : <Empty icon="search" title={shell.notFound} hint={shell.notFoundHint}>
              <Button kind="primary" onClick={() => go("/playground")}>{shell.toPlayground}</Button>
            </Empty>}
      </main>
    </div>
  );
}

export function Choices() {
  const { shell } = words.value;
  const titles = { system: shell.themeSystem, light: shell.themeLight, dark: shell.themeDark };
  return (
    <div class="choices">
      <Choice label={shell.language} value={language.value} onValue={choose}
        options={(Object.keys(LANGUAGES) as Language[]).map((value) => ({ value, text: LANGUAGES[value], lang: value }))} />
      <Choice label={shell.theme} value={theme.value} onValue={(value) => { theme.value = value; }}
        options={THEMES.map((value) => ({ value, text: <Icon name={value} />, title: titles[value] }))} />
      {renewed.value && (
        <Notice kind="warning">
          <p>{shell.renewed}. {shell.renewedHint}</p>
          <Button icon="again" onClick={() => location.reload()}>{shell.reload}</Button>
        </Notice>
      )}
    </div>
  );
}

function SignedIn() {
  const { shell } = words.value;
  const who = session.value;
  const [failure, setFailure] = useState<unknown>(null);
  if (!who) return null;
  if (!who.keys_required) return <p class="who hint">{shell.noKeys}</p>;
  return (
    <div class="who">
      <p class="hint">{fill(shell.signedInAs, { role: shell.role[who.role], tenant: who.tenant })}</p>
      <Button kind="quiet" icon="signOut" onClick={() => void signOut().catch(setFailure)}>{shell.signOut}</Button>
      <Failure error={failure} />
    </div>
  );
}

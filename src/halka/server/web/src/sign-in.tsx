import { useEffect, useState } from "preact/hooks";
import { Choices } from "./app";
import { Button } from "./parts/button";
import { TextField } from "./parts/field";
import { Mark } from "./parts/icons";
import { Failure } from "./parts/notice";
import { signIn } from "./session";
import { words } from "./words/words";

/** Asks for a key. */
export function SignIn() {
  const { shell } = words.value;
  const [key, setKey] = useState("");
  const [missing, setMissing] = useState(false);
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<unknown>(null);
  const [before, after] = shell.signInLead.split("{command}");
  useEffect(() => {
    document.title = `${shell.signIn} · ${shell.name}`;
  }, [shell]);
  const submit = async (event: Event) => {
    event.preventDefault();
    setMissing(!key.trim());
    if (!key.trim() || busy) return;
    setBusy(true);
    setFailure(null);
    await signIn(key.trim()).catch((error: unknown) => {
      setFailure(error);
      setBusy(false);
    });
  };
  return (
    <main class="alone">
      <form class="sheet sign-in" onSubmit={submit} noValidate>
        <p class="brand"><Mark /><strong>{shell.name}</strong></p>
        <h1>{shell.signIn}</h1>
        <p>{before}<code>halka keys add</code>{after}</p>
        <Failure error={failure} />
        <TextField label={shell.key} type="password" autocomplete="current-password" spellcheck={false} value={key} onValue={setKey}
          hint={shell.keyHint} error={missing ? shell.keyMissing : null} />
        <Button kind="primary" type="submit" busy={busy}>{shell.signIn}</Button>
        <Choices />
      </form>
    </main>
  );
}

// One screen, loaded when it is first shown, if the caller's role may see it; what fails in it stays in it.
import { Component, type ComponentChildren, type ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { get } from "../api";
import { Button } from "../parts/button";
import { Empty, Failure } from "../parts/notice";
import { Waiting } from "../parts/progress";
import { address } from "../router";
import { may, session } from "../session";
import { fill, words } from "../words/words";
import type { Screen, ScreenProps } from "./screens";

export function Shown({ screen, rest }: { screen: Screen; rest: string[] }) {
  const { shell } = words.value;
  const [Content, setContent] = useState<ComponentType<ScreenProps> | null>(null);
  const [missing, setMissing] = useState(false);
  const [failure, setFailure] = useState<unknown>(null);
  const allowed = may(screen.needs);
  const load = () => {
    setFailure(null);
    screen.load().then((loaded) => setContent(() => loaded.default), () => get("/v1/session").then(() => setMissing(true), setFailure));
  };
  useEffect(() => {
    if (allowed) load();
  }, [screen, allowed]);
  if (!allowed) {
    const role = shell.role[session.value?.role ?? "monitor"];
    return <Empty icon="account" title={shell.roleTooLow} hint={fill(shell.roleTooLowHint, { role: shell.role[screen.needs], yours: role })} />;
  }
  if (missing) {
    return (
      <Empty icon="again" title={shell.renewed} hint={shell.renewedHint}>
        <Button kind="primary" onClick={() => location.reload()}>{shell.reload}</Button>
      </Empty>
    );
  }
  if (failure) return <Failure error={failure} again={load} />;
  return Content ? <Boundary address={address.value}><Content rest={rest} /></Boundary> : <Waiting label={shell.loading} />;
}

/** Shows an error of its children in their place, until another address is shown. */
class Boundary extends Component<{ address: string; children: ComponentChildren }, { failure: unknown }> {
  override state = { failure: null };

  static getDerivedStateFromError(failure: unknown) {
    return { failure };
  }

  override componentDidUpdate(before: { address: string }) {
    if (before.address !== this.props.address && this.state.failure !== null) this.setState({ failure: null });
  }

  override render() {
    if (this.state.failure === null) return this.props.children;
    return <Failure error={this.state.failure} again={() => this.setState({ failure: null })} />;
  }
}

/** A screen's title, with one line of what it is for. */
export function Heading({ title, lead, children }: { title: string; lead: string; children?: ComponentChildren }) {
  return (
    <header class="heading">
      <div>
        <h1>{title}</h1>
        <p>{lead}</p>
      </div>
      {children}
    </header>
  );
}

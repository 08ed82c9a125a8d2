import type { ComponentChildren } from "preact";
import { useEffect, useId, useLayoutEffect, useRef } from "preact/hooks";
import { showOnce } from "../once";
import { words } from "../words/words";
import { Button } from "./button";

/**
 * A dialog over the page while it is there: Escape, its button and a click beside it call `onClose`; if `firm`, the button alone,
 * and nothing else ends what is shown.
 * The focus then goes back to what had it, or to what `focusAfter` says, which is asked for at the beginning, while all is there;
 * to the screen if that is gone.
 */
export function Dialog({ title, onClose, children, wide = false, firm = false, focusAfter = (before) => () => before }: {
  title: ComponentChildren;
  onClose: () => void;
  children: ComponentChildren;
  wide?: boolean;
  firm?: boolean;
  focusAfter?: (before: Element | null) => () => Element | null;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  const pressedBeside = useRef(false);
  useLayoutEffect(() => (firm ? showOnce() : undefined), [firm]);
  useEffect(() => {
    const afterwards = focusAfter(document.activeElement);
    dialog.current?.showModal();
    return () => {
      const after = afterwards();
      (after instanceof HTMLElement && after.isConnected ? after : document.getElementById("content"))?.focus();
    };
  }, []);
  return (
    <dialog ref={dialog} class={wide ? "dialog wide" : "dialog"} aria-labelledby={id} onCancel={(event) => {
      event.preventDefault();
      if (!firm) onClose();
    }} onClose={() => dialog.current?.showModal() /* a browser closes it unasked where Escape is pressed again and again */} onMouseDown={(event) => {
      pressedBeside.current = event.target === dialog.current;
    }} onClick={(event) => !firm && pressedBeside.current && event.target === dialog.current && onClose()}>
      <div class="dialog-inside">
        <header>
          <h2 id={id}>{title}</h2>
          <Button kind="quiet" icon="close" label={words.value.parts.close} onClick={onClose} />
        </header>
        {children}
      </div>
    </dialog>
  );
}

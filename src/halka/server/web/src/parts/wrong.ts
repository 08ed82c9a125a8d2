// Where a form cannot be sent yet.

/** Give the first field with a wrong value the focus, and open what it is folded in. */
export function showWrong(form: EventTarget | null): void {
  const field = form instanceof HTMLElement ? form.querySelector<HTMLElement>("[aria-invalid]") : null;
  for (let folded = field?.closest("details"); folded; folded = folded.parentElement?.closest("details")) folded.open = true;
  field?.focus();
}

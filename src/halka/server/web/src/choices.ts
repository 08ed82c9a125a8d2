// What the reader chose for this browser: the theme and the language.
import { effect, signal } from "@preact/signals";
import { tried } from "./tried";

export const THEMES = ["system", "light", "dark"] as const;
export const LANGUAGES = { en: "English", bn: "বাংলা" } as const;
export type Theme = (typeof THEMES)[number];
export type Language = keyof typeof LANGUAGES;

const isLanguage = (text: string): text is Language => text in LANGUAGES;
const preferred = () => navigator.languages.map((tag) => tag.slice(0, 2)).find(isLanguage) ?? "en";

export const theme = signal<Theme>(THEMES.find((name) => name === stored("theme")) ?? "system");
export const language = signal<Language>([stored("language") ?? ""].find(isLanguage) ?? preferred());

const dark = matchMedia("(prefers-color-scheme: dark)");
const systemIsDark = signal(dark.matches);
dark.addEventListener("change", ({ matches }) => {
  systemIsDark.value = matches;
});

/** Show and remember what is chosen, from now on. */
export function applyChoices(): void {
  effect(() => {
    document.documentElement.dataset["theme"] = theme.value === "system" ? (systemIsDark.value ? "dark" : "light") : theme.value;
    store("theme", theme.value);
  });
  effect(() => {
    document.documentElement.lang = language.value;
  });
}

export function choose(chosen: Language): void {
  store("language", chosen);
  language.value = chosen;
}

function stored(name: string): string | null {
  return tried(() => localStorage.getItem(`halka.${name}`));
}

function store(name: string, value: string): void {
  tried(() => localStorage.setItem(`halka.${name}`, value)); // where it cannot, it holds for this visit
}

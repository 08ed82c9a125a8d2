// Icons as inline SVG, drawn with one stroke; decoration only, so that what they mean is always said in words too.
const PATHS = {
  playground: "M4 5h16v11H10l-4 4v-4H4z M8 9h8 M8 12h5",
  train: "M4 19V5 M4 19h16 M7 8c2 6 5 8 12 8.5",
  adapters: "M12 3l8 4.5-8 4.5-8-4.5z M4 12l8 4.5 8-4.5 M4 16.5L12 21l8-4.5",
  compare: "M5 20V10 M12 20V4 M19 20v-7",
  documents: "M6 3h8l4 4v14H6z M14 3v4h4 M9 12h6 M9 16h6",
  advise: "M12 3v2 M5.6 5.6L7 7 M18.4 5.6L17 7 M9 17a5 5 0 1 1 6 0v2H9z M10 22h4",
  account: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8z M4 21c1-4 4-6 8-6s7 2 8 6",
  menu: "M4 7h16 M4 12h16 M4 17h16",
  close: "M6 6l12 12 M18 6L6 18",
  add: "M12 5v14 M5 12h14",
  copy: "M9 9h11v11H9z M5 15H4V4h11v1",
  check: "M5 12.5l5 5 9-11",
  send: "M5 12h13 M12 5.5l6.5 6.5-6.5 6.5",
  stop: "M7 7h10v10H7z",
  again: "M19 12a7 7 0 1 1-2.2-5.1 M19 4v4.5h-4.5",
  trash: "M5 7h14 M9 7V4h6v3 M7 7l1 13h8l1-13",
  upload: "M12 16V5 M7.5 9.5L12 5l4.5 4.5 M5 19h14",
  download: "M12 5v11 M7.5 11.5L12 16l4.5-4.5 M5 19h14",
  settings: "M4 7h9 M17 7h3 M4 17h3 M11 17h9 M15 9a2 2 0 1 0 0-4 2 2 0 0 0 0 4z M9 19a2 2 0 1 0 0-4 2 2 0 0 0 0 4z",
  system: "M4 5h16v11H4z M9 20h6 M12 16v4",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8z M12 2.5v2 M12 19.5v2 M2.5 12h2 M19.5 12h2 M5.3 5.3l1.4 1.4 M17.3 17.3l1.4 1.4 M18.7 5.3l-1.4 1.4 M6.7 17.3l-1.4 1.4",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
  warning: "M12 4l9 16H3z M12 10v4.5 M12 17.2v.3",
  info: "M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17z M12 11v5 M12 7.7v.3",
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13z M15.5 15.5L20 20",
  signOut: "M10 5H5v14h5 M14 8l4 4-4 4 M18 12H9",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}

/** The mark: a feather on the base's green. */
export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
      <rect width="32" height="32" rx="9" />
      <path d="M7.5 20.5C10.5 12 16 8 25 8c-1 8.5-6 13-14 12.8M7 25c1.5-5.5 5-9.5 10-12" />
    </svg>
  );
}

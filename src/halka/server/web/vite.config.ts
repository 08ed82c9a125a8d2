// Builds the page into built/, the same bytes each time, with the digests of its sources and of each file.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { defineConfig, type Plugin } from "vite";

const ROOT = import.meta.dirname;
const SOURCES = ["index.html", "package-lock.json", "package.json", "src", "tsconfig.json", "vite.config.ts"];
const DIGESTS = "sources.sha256";

/** The SHA-256 of all sources, each as its path, its size and its bytes; tests/page/test_page_built.py counts it too. */
function digest(): string {
  const files = SOURCES.flatMap((name) => (name === "src" ? within(join(ROOT, name), ROOT) : [name]));
  const hash = createHash("sha256");
  for (const file of files.sort()) {
    const bytes = readFileSync(join(ROOT, file));
    hash.update(`${file}\n${bytes.length}\n`).update(bytes);
  }
  return hash.digest("hex");
}

/** The files of a folder, by their paths from `root`. */
function within(folder: string, root: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(root, join(entry.parentPath, entry.name)));
}

/** Writes sources.sha256: the digest of the sources, then of each file that was built, as sha256sum writes it. */
const sources: Plugin = {
  name: "sources",
  writeBundle({ dir }) {
    if (dir === undefined) return;
    const built = within(dir, dir).filter((file) => file !== DIGESTS).sort();
    const lines = built.map((file) => `${createHash("sha256").update(readFileSync(join(dir, file))).digest("hex")}  ${file}`);
    writeFileSync(join(dir, DIGESTS), [digest(), ...lines, ""].join("\n"));
  },
};

/** The first picture waits for the script, which knows the chosen theme: no flash of another. */
const blocking: Plugin = {
  name: "blocking",
  transformIndexHtml: {
    order: "post",
    handler: (html) => html.replace('<script type="module"', '<script type="module" blocking="render"'),
  },
};

export default defineConfig({
  root: ROOT,
  base: "/",
  plugins: [sources, blocking],
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: process.env["HALKA_PAGE_OUT"] ?? "built",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: true,
  },
  server: { proxy: { "/v1": "http://127.0.0.1:8000" } },
});

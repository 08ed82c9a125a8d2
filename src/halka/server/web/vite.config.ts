// Builds the page into built/, the same bytes each time, with the digest of the sources that they come from.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { defineConfig, type Plugin } from "vite";

const ROOT = import.meta.dirname;
const SOURCES = ["index.html", "package-lock.json", "package.json", "src", "tsconfig.json", "vite.config.ts"];

/** The SHA-256 of all sources, each as its path, its size and its bytes; tests/page/test_built.py counts it too. */
function digest(): string {
  const files = SOURCES.flatMap((name) =>
    name === "src"
      ? readdirSync(join(ROOT, name), { recursive: true, withFileTypes: true })
          .filter((entry) => entry.isFile())
          .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)))
      : [name],
  );
  const hash = createHash("sha256");
  for (const file of files.sort()) {
    const bytes = readFileSync(join(ROOT, file));
    hash.update(`${file}\n${bytes.length}\n`).update(bytes);
  }
  return hash.digest("hex");
}

const sources: Plugin = {
  name: "sources",
  generateBundle() {
    this.emitFile({ type: "asset", fileName: "sources.sha256", source: `${digest()}\n` });
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

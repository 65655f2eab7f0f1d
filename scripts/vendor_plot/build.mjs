// Rebuilds the vendored file and its licences: `npm ci && npm run build`. The same lock file gives the same bytes.
import { build } from "esbuild";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const vendor = here("../../continual/dashboard/assets/vendor/");
const described = (name) => JSON.parse(readFileSync(here(`node_modules/${name}/package.json`), "utf8"));

const { metafile } = await build({
  entryPoints: [here("entry.js")],
  absWorkingDir: here("."),
  outfile: `${vendor}plot.min.js`,
  bundle: true,
  minify: true,
  metafile: true,
  format: "iife",
  globalName: "Plot",
  target: "es2020",
  charset: "ascii",
  legalComments: "none",
  banner: {
    js: `/* Observable Plot ${described("@observablehq/plot").version} with d3 ${described("d3").version}; licences in LICENSE, built by scripts/vendor_plot */`,
  },
});

const [output] = Object.values(metafile.outputs);
const inputs = Object.keys(output.inputs).filter(
  (path) => output.inputs[path].bytesInOutput > 0 && path.startsWith("node_modules/"),
);
const packages = [...new Set(inputs.map((path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)[1]))].sort();
const licences = packages.map((name) => {
  const file = ["LICENSE", "LICENSE.md", "LICENSE.txt", "license"].find((own) =>
    existsSync(here(`node_modules/${name}/${own}`)),
  );
  if (!file) throw new Error(`${name} comes without a licence file`);
  const { version, license } = described(name);
  return `${name} ${version} (${license})\n\n${readFileSync(here(`node_modules/${name}/${file}`), "utf8")
    .replaceAll("\r\n", "\n")
    .trim()}\n`;
});
writeFileSync(`${vendor}LICENSE`, licences.join(`\n${"-".repeat(80)}\n\n`));
console.log(`plot.min.js holds ${packages.join(", ")}`);

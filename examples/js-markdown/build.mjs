// node build.mjs [OUT.wasm]: makes the component of app.js.
import { componentize } from "@bytecodealliance/componentize-js";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const here = import.meta.dirname;
const contract = join(here, "../../wit");
// componentize-js takes one directory, with what it uses in `deps`.
const wit = await mkdtemp(join(tmpdir(), "wit-"));
try {
  await cp(join(contract, "formatter"), wit, { recursive: true });
  await cp(join(contract, "types"), join(wit, "deps/types"), { recursive: true });
  const { component } = await componentize(await readFile(join(here, "app.js"), "utf8"), {
    witPath: wit,
    worldName: "output-formatter",
    // A formatter needs none of it.
    disableFeatures: ["random", "stdio", "clocks", "http", "fetch-event"],
  });
  await writeFile(process.argv[2] ?? join(here, "markdown.wasm"), component);
} finally {
  await rm(wit, { recursive: true });
}

// The start: reads explorer.json, loads the runtime and the networks, and shows the view of the model's family.

import { fetchBytes, fetchJson, Loading, Missing } from "./loading.js";
import { openRuntime } from "./networks.js";
import { showGenerator } from "./generator.js";
import { showLatents } from "./latents.js";
import { showText } from "./text.js";

const VIEWS = { latents: showLatents, generator: showGenerator, text: showText };
const byId = (id) => document.getElementById(id);

async function start() {
  document.body.classList.add("started");
  const about = await fetchJson("explorer.json");
  document.title = `${about.title} · explorer`;
  byId("kind").textContent = about.kind;
  byId("title").textContent = about.title;
  byId("lead").textContent = about.lead;
  if (typeof WebAssembly !== "object") {
    throw new Missing("This browser has no WebAssembly, or it is switched off. The model needs it to run. Use a current version of Chrome, Edge, Firefox or Safari.");
  }

  const loading = new Loading(about.runtime.bytes + about.files.reduce((sum, file) => sum + file.bytes, 0), (loaded, words) => {
    byId("loaded").value = loaded;
    byId("status").textContent = words;
  });
  const runtime = await openRuntime(about.runtime, loading);
  const files = {};
  for (const file of about.files) {
    files[file.name] = await fetchBytes(file.path, loading, file.words);
  }
  const networks = {};
  for (const { name } of about.files.filter((file) => file.path.endsWith(".onnx"))) {
    loading.say(`Preparing the ${name}.`);
    networks[name] = await runtime.open(files[name], name);
  }

  loading.say("Drawing the first picture.");
  const main = byId("explorer");
  main.append(byId(about.view).content.cloneNode(true));
  await VIEWS[about.view]({ about, files, networks });
  byId("loading").hidden = true;
  byId("footer").hidden = false;
  byId("footer").textContent = about.footer;
  document.body.dataset.ready = "true"; // what the tests wait for
}

start().catch((error) => {
  byId("loading").hidden = true;
  byId("explorer").replaceChildren();
  byId("reason").textContent = error instanceof Missing ? error.message : `${error.message || error}. Please report this, with the name of the browser.`;
  byId("problem").hidden = false;
  if (!(error instanceof Missing)) console.error(error);
});

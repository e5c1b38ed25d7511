// Predict here: gives a file to a run, waits, and draws what comes back.
import { ask, askJson, part, root } from "./dom.js";
import { showVolume } from "./volume.js";

const PAUSE = 700; // ms between two looks at a prediction
const form = document.querySelector("[data-predict]");

if (form) {
  const state = document.querySelector("[data-state]");
  const result = document.querySelector("[data-result]");
  const section = result.querySelector("[data-volume]");
  const empty = section.cloneNode(true);
  const drop = form.querySelector(".drop");
  const say = (text, wrong = false) => {
    state.textContent = text;
    state.className = wrong ? "warning" : "soft";
  };
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    form.elements.file.files = event.dataTransfer.files;
  });
  // A file that misses its place would replace the page.
  for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const file = form.elements.file.files[0];
    const button = form.querySelector("button");
    button.disabled = true;
    result.hidden = true;
    try {
      say(`sending ${file.name} to this machine's own server …`);
      const channel = form.elements.channel.value;
      const address = `${root}/predict?run=${part(form.elements.run.value)}&name=${part(file.name)}&channel=${part(channel)}`;
      const { job } = await (await ask(address, { method: "POST", body: file })).json();
      const done = await finished(job, say);
      await draw(job, done);
      say(`${file.name} is predicted.`);
    } catch (error) {
      say(error.message, true);
    } finally {
      button.disabled = false;
    }
  });

  const draw = async (job, done) => {
    const fresh = empty.cloneNode(true); // WebGL keeps a canvas for good
    result.querySelector("[data-volume]").replaceWith(fresh);
    for (const link of result.querySelectorAll("[data-download]")) link.href = `${root}/predict/${job}/${link.dataset.download}/file`;
    result.hidden = false;
    await showVolume(fresh, done.scene);
  };
}

async function finished(job, say) {
  const began = Date.now();
  for (;;) {
    const found = await askJson(`${root}/predict/${job}`);
    if (found.state === "failed") throw new Error(found.error);
    if (found.state === "done") return found;
    say(`${found.state === "waiting" ? "waiting for another file" : "predicting"} … ${Math.round((Date.now() - began) / 1000)} s`);
    await new Promise((wake) => setTimeout(wake, PAUSE));
  }
}

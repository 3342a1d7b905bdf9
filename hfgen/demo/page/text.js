// The view of a GPT: it continues a text, shows what it expects next, and how surprised it was.

import { slider } from "./controls.js";
import { Tokens } from "./tokens.js";
import { Writer } from "./writer.js";

const PACES = [1, 3, 8, 15, 30, 60, 120, Infinity]; // tokens a second
const BARS = 10;
const MOST_BITS = 8; // of surprise, painted in full
const LONGEST = 20_000; // tokens on the page
const byId = (id) => document.getElementById(id);

export async function showText({ about, networks }) {
  await new TextView(about.text, networks.model).show();
}

class TextView {
  constructor(about, network) {
    this.about = about;
    this.tokens = new Tokens(about);
    this.writer = new Writer(network, about);
    this.writing = false;
    this.begun = null; // the prompt that the text on the page began with
    this.surprises = [];
    this.spent = [];
  }

  async show() {
    byId("prompt").value = this.about.prompt;
    const pace = (index) => (PACES[index] === Infinity ? "as fast as it can" : `${PACES[index]} ${this.about.unit}${PACES[index] > 1 ? "s" : ""} a second`);
    slider(byId("temperature"), byId("temperature-value"), (value) => value.toFixed(2), () => this.showBars());
    slider(byId("pace"), byId("pace-value"), pace);
    this.bars = Array.from({ length: BARS }, () => this.bar());
    byId("write").addEventListener("click", () => this.write());
    byId("step").addEventListener("click", () => this.once());
    byId("stop").addEventListener("click", () => this.stop());
    byId("prompt").addEventListener("input", () => this.prepare());
    addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.write();
    });
    await this.begin();
  }

  bar() {
    const button = document.createElement("button");
    button.type = "button";
    button.append(document.createElement("code"), document.createElement("i"), document.createElement("span"));
    button.addEventListener("click", () => this.choose(Number(button.dataset.id)));
    byId("bars").append(button);
    return button;
  }

  /** One thing after the other: what is asked for while a step runs waits for it. */
  inTurn(action) {
    const result = (this.turn ?? Promise.resolve()).then(action);
    this.turn = result.catch(() => {});
    return result;
  }

  // The text.

  /** Called for each change of the prompt: starts the text over once nothing has been typed for a moment. */
  prepare() {
    this.stop();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.begin(), 200);
  }

  begin() {
    return this.inTurn(async () => {
      const prompt = byId("prompt").value;
      this.begun = prompt;
      this.writer.forget();
      this.reader = this.tokens.reader();
      this.surprises = [];
      this.ended = false;
      byId("page").replaceChildren();
      let ids = this.tokens.encode(prompt);
      if (!ids.length) ids = this.about.start === null ? this.tokens.encode("\n") : [this.about.start];
      const logits = await this.writer.feed(ids);
      // What the model expected before each token of the prompt, as far back as it still reads.
      const first = ids.length - logits.length;
      ids.forEach((id, i) => this.print(id, i > first ? this.writer.surprise(id, logits[i - first - 1]) : 0, true));
      this.showBars();
    });
  }

  print(id, bits, isGiven) {
    const text = this.reader(id);
    if (!isGiven) this.surprises.push(bits);
    if (!text) return;
    const page = byId("page");
    const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 40;
    const span = document.createElement("span");
    span.textContent = text;
    span.style.setProperty("--s", Math.min(1, bits / MOST_BITS).toFixed(3));
    span.title = `${bits.toFixed(1)} bits: expected with ${(100 * 2 ** -bits).toPrecision(2)} %`;
    if (isGiven) span.className = "given";
    page.append(span);
    if (page.childElementCount > LONGEST) page.firstElementChild.remove();
    if (atEnd) page.scrollTop = page.scrollHeight;
  }

  /** Appends a token, and reads it. */
  async append(id) {
    if (this.about.end.includes(id)) {
      this.ended = true;
      return;
    }
    this.print(id, this.writer.surprise(id), false);
    await this.writer.feed([id]);
    this.showBars();
  }

  async step() {
    const start = performance.now();
    await this.append(this.writer.draw(byId("temperature").valueAsNumber));
    this.spent = [...this.spent.slice(-29), performance.now() - start];
    const mean = this.spent.reduce((sum, value) => sum + value, 0) / this.spent.length;
    byId("timing").textContent = `${mean < 10 ? mean.toFixed(1) : Math.round(mean)} ms a ${this.about.unit}`;
    const bits = this.surprises.reduce((sum, value) => sum + value, 0) / Math.max(1, this.surprises.length);
    byId("bits").textContent = `${bits.toFixed(2)} bits a ${this.about.unit} on average`;
  }

  once() {
    this.stop();
    return this.inTurn(() => this.step());
  }

  choose(id) {
    this.stop();
    return this.inTurn(() => this.append(id));
  }

  async write() {
    if (this.writing) return;
    if (this.ended || byId("prompt").value !== this.begun) await this.begin();
    this.writing = true;
    this.mark();
    let due = performance.now();
    while (this.writing && !this.ended) {
      await this.inTurn(() => this.step());
      due = Math.max(due + 1000 / PACES[byId("pace").valueAsNumber], performance.now() - 100);
      const wait = due - performance.now();
      // At full speed, the page is painted and heard of every few steps.
      if (wait > 1 || this.surprises.length % 8 === 0) await new Promise((resolve) => setTimeout(resolve, Math.max(0, wait)));
    }
    this.stop();
  }

  stop() {
    this.writing = false;
    this.mark();
  }

  mark() {
    byId("write").disabled = this.writing;
    byId("stop").disabled = !this.writing;
    byId("write").textContent = this.surprises.length && byId("prompt").value === this.begun ? "Write on" : "Write";
  }

  // What comes next.

  showBars() {
    if (!this.writer.logits) return;
    const probabilities = this.writer.probabilities(byId("temperature").valueAsNumber);
    const ids = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, BARS);
    this.bars.forEach((bar, i) => {
      bar.hidden = !(probabilities[ids[i]] > 0);
      if (bar.hidden) return;
      const [name, line, share] = bar.children;
      bar.dataset.id = ids[i];
      name.textContent = this.tokens.name(ids[i]);
      line.style.setProperty("--p", probabilities[ids[i]].toFixed(4));
      share.textContent = `${(100 * probabilities[ids[i]]).toFixed(1)} %`;
      bar.setAttribute("aria-label", `${name.textContent}: ${share.textContent}`);
    });
  }
}

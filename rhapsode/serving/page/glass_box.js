// The glass box: what the model weighed in the place of one token, step by step, at any temperature.
//
// The server is asked once for a grid of temperatures; the slider only chooses which of its answers is drawn.

import * as api from "./api.js";
import { element, percent } from "./dom.js";
import { isStop } from "./api.js";
import { nameParts, spokenName } from "./pieces.js";

const STEPS = 40;
const HOTTEST = 2;
const GRID = Array.from({ length: STEPS + 1 }, (_, place) => Number(((place * HOTTEST) / STEPS).toFixed(2)));
const TOP = 20; // alternatives that are listed
const NAME_WIDTH = 6.9; // rem
const STEP_WIDTH = 5.2;
const SHOWN_BEFORE = 60; // characters of the text that stand before the token
const FILTERS = ["top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty"];

export class GlassBox {
  /** Args: `choose(index, k, alternative)` writes on from there; `moved(index, k)` tells which token is shown; `closed()`. */
  constructor(root, { choose, moved, closed }) {
    Object.assign(this, { root, choose, moved, closed });
    this.asking = null; // an AbortController
    this.answer = null; // what /v1/next said
    this.built = null; // the answer for which the table was made
    this.title = element("h2", {});
    this.before = this.#button("Token before", "M12 5l-5 5 5 5", () => this.#step(-1));
    this.after = this.#button("Next token", "M8 5l5 5-5 5", () => this.#step(1));
    this.context = element("p", { class: "context", dir: "auto" });
    this.slider = element("input", { type: "range", id: "glass-temperature", min: 0, step: 1, oninput: () => this.#draw() });
    this.reading = element("output", { for: "glass-temperature" });
    this.told = element("p", { class: "note" });
    this.table = element("table", {});
    this.message = element("p", { class: "note", role: "status" });
    root.append(
      element("header", {}, this.title, this.before, this.after, this.#button("Close the glass box", "M5 5l10 10M15 5L5 15", () => this.close())),
      element(
        "div", { class: "panel-body" },
        this.context,
        element("div", { class: "setting" },
          element("div", { class: "setting-head" }, element("label", { for: "glass-temperature" }, "Temperature"), this.reading),
          this.slider, this.told),
        this.message,
        element("div", { class: "table-scroll", tabindex: 0, role: "region", "aria-label": "Alternatives, step by step" }, this.table),
        element("p", { class: "note" }, "Choose a token to write on from there."),
      ),
    );
    root.addEventListener("keydown", (event) => this.#pressed(event));
  }

  get open() {
    return !this.root.hidden;
  }

  /** Look into token `k` of a node of a conversation. */
  async show(conversation, index, k) {
    Object.assign(this, { conversation, index, k });
    const node = conversation.nodes[index];
    const { tokens, sampling } = node;
    this.root.hidden = false;
    this.title.textContent = `Token ${k + 1} of ${tokens.length}`;
    this.before.disabled = k === 0;
    this.after.disabled = k === tokens.length - 1;
    const start = conversation.textTo(node.parent).slice(-SHOWN_BEFORE) + tokens.slice(0, k).map((token) => token.text).join("");
    const shown = conversation.mode === "chat" ? tokens.slice(0, k).map((token) => token.text).join("") : start;
    this.context.replaceChildren(shown.length > SHOWN_BEFORE ? `…${shown.slice(-SHOWN_BEFORE)}` : shown, element("mark", {}, named(tokens[k])));
    this.moved(index, k);
    this.asking?.abort();
    this.answer = null;
    this.root.setAttribute("aria-busy", "true");
    this.message.hidden = true;
    if (!node.prompt) {
      this.#fail("The ids of this answer's prompt are not known, so it cannot be looked into.");
      return;
    }
    this.grid = [...new Set([...GRID, sampling.temperature])].sort((one, other) => one - other);
    this.slider.max = this.grid.length - 1;
    this.slider.value = this.grid.indexOf(sampling.temperature);
    const filters = Object.fromEntries(FILTERS.filter((name) => name in sampling).map((name) => [name, sampling[name]]));
    const asking = new AbortController();
    this.asking = asking;
    try {
      const answer = await api.next(
        {
          model: node.model, prompt: [...node.prompt, ...tokens.slice(0, k).map((token) => token.id)],
          prompt_length: node.prompt.length, temperatures: this.grid, top: TOP, tokens: [tokens[k].id], ...filters,
        },
        asking.signal,
      );
      this.answer = answer;
      this.#draw();
    } catch (error) {
      if (isStop(error)) return;
      this.#fail(error.message);
    }
    if (this.asking === asking) this.root.setAttribute("aria-busy", "false");
  }

  /** Close it; the focus goes back to the token. */
  close() {
    if (!this.open) return;
    this.asking?.abort();
    const had = this.root.contains(document.activeElement);
    this.root.hidden = true;
    this.closed(this.index, this.k, had);
  }

  /** Put the focus into it. */
  focus() {
    this.slider.focus();
  }

  #fail(message) {
    this.table.replaceChildren();
    this.message.textContent = message;
    this.message.hidden = false;
    this.root.setAttribute("aria-busy", "false");
  }

  #step(by) {
    const k = this.k + by;
    if (k >= 0 && k < this.conversation.nodes[this.index].tokens.length) this.show(this.conversation, this.index, k);
  }

  #draw() {
    const place = Number(this.slider.value);
    const temperature = this.grid[place];
    const { temperature: drawn } = this.conversation.nodes[this.index].sampling;
    this.reading.textContent = String(temperature);
    this.slider.setAttribute("aria-valuetext", String(temperature));
    this.told.textContent = temperature === drawn ? "The temperature at which it was drawn." : `It was drawn at ${drawn}.`;
    if (this.answer === null) return;
    const { tokens } = this.answer;
    const steps = this.#steps(place);
    if (this.answer !== this.built) this.#build(tokens, steps);
    this.#fill(steps);
  }

  /** The steps at one temperature; one that does nothing there, as a filter at 0, leaves what stood before it. */
  #steps(place) {
    const { distributions } = this.answer;
    const longest = distributions.map(({ steps }) => steps).reduce((one, other) => (other.length > one.length ? other : one));
    const here = new Map(distributions[place].steps.map((step) => [step.name, step]));
    let last = null;
    return longest.map(({ name }) => {
      last = here.get(name) ?? last;
      return { ...last, name };
    });
  }

  /** The table without its numbers. */
  #build(tokens, steps) {
    const { id } = this.conversation.nodes[this.index].tokens[this.k];
    const head = element("tr", {}, element("th", { scope: "col" }, "Token"), ...steps.map(({ name }) => element("th", { scope: "col" }, name)));
    const rows = tokens.map((token) =>
      element(
        "tr", { class: token.id === id ? "drawn" : null, "data-id": token.id },
        element("th", { scope: "row" }, element(
          "button",
          {
            type: "button", class: "alternative", title: token.id === id ? "Write on from here anew" : "Write on from here with this token",
            "aria-label": `Write on from here with ${spokenName(token)}${token.id === id ? ", the token that was drawn" : ""}`,
            onclick: () => this.choose(this.index, this.k, { ...token, probability: this.#probability(token.id) }),
          },
          named(token),
        ), token.id === id ? element("span", { class: "drawn-sign" }, "drawn") : null),
        ...steps.map(cell),
      ),
    );
    rows.push(element("tr", { class: "others" }, element("th", { scope: "row" }, "others"), ...steps.map(cell)));
    this.table.style.minWidth = `${NAME_WIDTH + steps.length * STEP_WIDTH}rem`;
    this.table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
    this.built = this.answer;
  }

  /** What the model itself gave a token that is listed. */
  #probability(id) {
    const row = this.answer.tokens.findIndex((token) => token.id === id);
    return this.answer.distributions[0].steps[0].probabilities[row];
  }

  /** Only the bars and numbers, as often as the slider moves. */
  #fill(steps) {
    const rows = this.table.tBodies[0].rows;
    steps.forEach(({ probabilities, others }, column) => {
      [...probabilities, others].forEach((share, row) => {
        const [figure, track] = rows[row].cells[column + 1].children;
        figure.textContent = share === 0 && column > 0 ? "–" : percent(share);
        track.firstElementChild.style.width = `${100 * share}%`;
      });
    });
  }

  #pressed(event) {
    if (event.target.type === "range") return;
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
    const buttons = [...this.table.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const target = buttons[at + (event.key === "ArrowDown" ? 1 : -1)];
    if (at >= 0 && target) {
      event.preventDefault();
      target.focus();
    }
  }

  #button(label, path, act) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.setAttribute("viewBox", "0 0 20 20");
    svg.setAttribute("aria-hidden", "true");
    line.setAttribute("d", path);
    svg.append(line);
    return element("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick: act }, svg);
  }
}

const cell = () => element("td", {}, element("span", { class: "figure" }), element("span", { class: "track" }, element("span", { class: "bar" })));

/** A token's name, with signs for what cannot be seen. */
function named(token) {
  return element("bdi", { class: "name" }, ...nameParts(token).map(([part, kind]) => (kind === "plain" ? part : element("span", { class: kind }, part))));
}

// The conversation on the page: what was said, tokens that can be clicked, and what one can do with each.

import { counted, element } from "./dom.js";
import { isEmpty, ROOT } from "./conversation.js";
import { spokenName } from "./pieces.js";

const LIKELY = [0.01, 0.05, 0.2, 0.5]; // the colours change at these probabilities

const FINISH = {
  stop: "ended by itself",
  length: "reached the limit of tokens",
  context: "the model's context is full",
  stopped: "stopped",
  failed: "broke off",
};

export class Transcript {
  /**
   * Args: `act(name, index)` does what a button says to a node; `open(index, k)` looks into a token.
   */
  constructor(root, { act, open }) {
    this.root = root;
    this.act = act;
    this.open = open;
    this.conversation = null;
    root.addEventListener("click", (event) => this.#clicked(event));
    root.addEventListener("keydown", (event) => this.#pressed(event));
    root.addEventListener("focusin", (event) => this.#rove(event.target));
  }

  /** Show a conversation, from its beginning. */
  show(conversation, greeting) {
    this.conversation = conversation;
    const path = conversation.path();
    const content = path.length === 0 ? [greeting] : conversation.mode === "chat" ? path.map((at) => this.#message(at)) : [this.#sheet(path)];
    this.root.replaceChildren(...content);
    this.root.classList.toggle("sheet-view", conversation.mode !== "chat");
  }

  /** Add the tokens of a node that came since it was shown; its end, with all buttons, comes with `show`. */
  grow(index) {
    const spans = this.root.querySelector(`[data-tokens="${index}"]`);
    if (spans === null) return;
    const { tokens } = this.conversation.nodes[index];
    for (let k = spans.childElementCount; k < tokens.length; k += 1) spans.append(tokenSpan(tokens[k], k));
  }

  /** The span of a token; null where its node is not shown. */
  span(index, k) {
    return this.root.querySelector(`[data-tokens="${index}"]`)?.children[k] ?? null;
  }

  /** Let one token be the marked one; none without an index. */
  mark(index = null, k = null) {
    this.root.querySelector(".token.open")?.classList.remove("open");
    if (index !== null) this.span(index, k)?.classList.add("open");
  }

  /** Put the focus on a token. */
  focus(index, k) {
    const span = this.span(index, k);
    if (span) this.#rove(span), span.focus();
  }

  /** A field in the place of a node's text, or of the whole text; `done` gets what is in it, or null. */
  edit(index, text, label, done) {
    const place = index === ROOT ? this.root.querySelector(".sheet") : this.root.querySelector(`[data-node="${index}"] .text`);
    const field = element("textarea", { class: "editor", dir: "auto", "aria-label": label, spellcheck: "false" });
    const size = () => {
      field.style.height = "auto";
      field.style.height = `${field.scrollHeight + 2}px`;
    };
    const close = (value) => {
      form.remove();
      done(value);
    };
    const form = element(
      "form",
      {
        class: "edit-form",
        onsubmit: (event) => {
          event.preventDefault();
          close(field.value);
        },
        onkeydown: (event) => {
          if (event.key === "Escape") {
            event.stopPropagation();
            close(null);
          } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
        },
      },
      field,
      element(
        "div", { class: "actions" },
        element("button", { type: "submit", class: "quiet strong" }, index === ROOT ? "Save" : "Send"),
        element("button", { type: "button", class: "quiet", onclick: () => close(null) }, "Cancel"),
        element("span", { class: "note" }, "Ctrl+Enter or Escape"),
      ),
    );
    field.value = text;
    field.addEventListener("input", size);
    place.closest("article").classList.add("editing");
    place.after(form);
    size();
    field.focus();
    field.setSelectionRange(text.length, text.length);
  }

  #message(index) {
    const node = this.conversation.nodes[index];
    const own = node.role === "user";
    const body = own ? element("div", { class: "text", dir: "auto" }, node.text) : this.#tokens(index, node, "div", "text");
    return element(
      "article", { class: `message ${own ? "user" : "model"}`, "data-node": index },
      element("h3", { class: "hidden" }, own ? "You" : node.model),
      body,
      node.error ? element("p", { class: "error", role: "alert" }, node.error) : null,
      this.#foot(index, node),
    );
  }

  #sheet(path) {
    const parts = path.flatMap((index) => {
      const node = this.conversation.nodes[index];
      const chip = this.#arrows(index, "span");
      const part = node.role === "user"
        ? element("span", { class: "written", "data-node": index }, node.text)
        : this.#tokens(index, node, "span", "");
      return chip ? [chip, part] : [part];
    });
    const last = path.at(-1);
    const node = this.conversation.nodes[last];
    return element(
      "article", { class: "message model text-sheet", "data-node": last },
      element("h3", { class: "hidden" }, "The text"),
      element("div", { class: "text sheet", dir: "auto" }, ...parts),
      node.error ? element("p", { class: "error", role: "alert" }, node.error) : null,
      this.#foot(last, node),
    );
  }

  #tokens(index, node, name, kind) {
    const writing = node.finish === null;
    const spans = node.tokens.map(tokenSpan);
    if (spans.length > 0) spans[0].tabIndex = 0;
    return element(
      name,
      {
        class: `${kind} tokens${writing ? " writing" : ""}`, "data-tokens": index, role: "group", dir: name === "div" ? "auto" : null,
        "aria-busy": String(writing), "aria-label": "Tokens: arrow keys move among them, Enter looks into one",
      },
      ...spans,
    );
  }

  #foot(index, node) {
    const chat = this.conversation.mode === "chat";
    const button = (name, label) =>
      element("button", { type: "button", class: "quiet", "data-act": name, "data-index": index }, label);
    const busy = this.conversation.stopper !== null;
    const buttons = [chat ? this.#arrows(index, "span") : null];
    if (!busy) {
      if (!chat) buttons.push(button("edit", "Edit the text"));
      else if (node.role === "user") buttons.push(button("edit", "Edit"));
      if (node.role === "model") {
        buttons.push(button("regenerate", isEmpty(node) ? "Try again" : chat ? "Regenerate" : "Another continuation"));
        const more = ["length", "stopped", "failed"].includes(node.finish) && node.prompt && node.tokens.length > 0;
        if (chat && more && this.conversation.last() === index) buttons.push(button("extend", "Go on"));
      }
      if (!chat || node.text) buttons.push(button("copy", "Copy"));
    }
    if (node.role === "model" && node.finish !== null && !(isEmpty(node) && node.error)) {
      const told = [counted(node.tokens.length, "token")];
      if (node.speed) told.push(`${speedText(node.speed)} tokens/s`);
      told.push(FINISH[node.finish]);
      buttons.push(element("span", { class: "note told" }, told.join(" · ")));
    }
    return element("div", { class: "actions" }, ...buttons);
  }

  #arrows(index, name) {
    const beside = this.conversation.siblings(index);
    if (beside.length < 2) return null;
    const place = beside.indexOf(index);
    const busy = this.conversation.stopper !== null;
    const arrow = (act, label, sign, off) =>
      element("button", { type: "button", "data-act": act, "data-index": index, "aria-label": label, disabled: off || busy }, sign);
    return element(
      name, { class: "arrows", role: "group", "aria-label": `Version ${place + 1} of ${beside.length}` },
      arrow("before", "The version before", "‹", place === 0),
      element("span", {}, `${place + 1}/${beside.length}`),
      arrow("after", "The next version", "›", place === beside.length - 1),
    );
  }

  #clicked(event) {
    const button = event.target.closest("[data-act]");
    if (button) {
      this.act(button.dataset.act, Number(button.dataset.index));
      return;
    }
    const token = event.target.closest(".token");
    if (token && window.getSelection().isCollapsed) this.#open(token);
  }

  #open(span) {
    this.open(Number(span.parentElement.dataset.tokens), Number(span.dataset.k));
  }

  #pressed(event) {
    const span = event.target.closest?.(".token");
    if (!span || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = [...this.root.querySelectorAll(".token")];
    const at = all.indexOf(span);
    const moves = {
      ArrowLeft: () => all[at - 1], ArrowRight: () => all[at + 1],
      ArrowUp: () => onNextLine(all, at, -1), ArrowDown: () => onNextLine(all, at, 1),
      Home: () => span.parentElement.firstElementChild, End: () => span.parentElement.lastElementChild,
    };
    if (Object.hasOwn(moves, event.key)) {
      event.preventDefault();
      const target = moves[event.key]();
      if (target) this.#rove(target), target.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.#open(span);
    }
  }

  /** Of each answer one token can be reached by Tab: the one that was focused last. It alone is a button to listeners. */
  #rove(span) {
    if (!span.classList?.contains("token")) return;
    for (const each of span.parentElement.querySelectorAll("[tabindex='0'], [role]")) {
      each.tabIndex = -1;
      each.removeAttribute("role");
      each.removeAttribute("aria-label");
    }
    const node = this.conversation.nodes[Number(span.parentElement.dataset.tokens)];
    const token = node.tokens[Number(span.dataset.k)];
    const chance = token.logprob === null ? "" : `, ${(100 * Math.exp(token.logprob)).toFixed(1)} percent`;
    span.tabIndex = 0;
    span.setAttribute("role", "button");
    span.setAttribute("aria-label", `${spokenName(token)}${chance}`);
  }
}

/** A token's probability as one of five colours. */
export function colourOf(logprob) {
  if (logprob === null) return "";
  const probability = Math.exp(logprob);
  return `p${LIKELY.filter((least) => probability >= least).length}`;
}

export const speedText = (speed) => (speed < 10 ? speed.toFixed(1) : String(Math.round(speed)));

export const finishText = (finish) => FINISH[finish];

function tokenSpan(token, k) {
  return element("span", { class: `token ${colourOf(token.logprob)} ${kindOf(token)}`, "data-k": k, tabindex: -1 }, token.text);
}

/** Tokens that show nothing get a sign to click: the end, a line's break, a part of a character or one without form. */
function kindOf({ text, end }) {
  if (end) return "end";
  if (/^[\r\n]+$/.test(text)) return "break";
  return /^\p{C}*$/u.test(text) ? "part" : "";
}

/** The token on the line above or below that stands nearest. */
function onNextLine(all, at, direction) {
  const here = all[at].getBoundingClientRect();
  const middle = (box) => box.left + box.width / 2;
  let best = null;
  let line = null;
  for (let next = at + direction; next >= 0 && next < all.length; next += direction) {
    const box = all[next].getClientRects()[0] ?? all[next].getBoundingClientRect();
    const apart = direction * (box.top - here.top);
    if (apart < here.height / 2) continue;
    if (line === null) line = box.top;
    if (Math.abs(box.top - line) > box.height / 2) break;
    const distance = Math.abs(middle(box) - middle(here));
    if (best === null || distance < best.distance) best = { distance, token: all[next] };
  }
  return best?.token;
}

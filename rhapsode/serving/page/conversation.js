// A conversation as a tree. What was edited or written anew stands beside what was there; nothing is lost.
//
// Nodes lie in one list, each after its parent, and are known by their place in it. A node is what somebody wrote
// (`role` "user") or what a model wrote ("model"); the latter keeps its tokens and how they were drawn. In a chat the
// two take turns; a text that a model continues is the same tree, read as one text.

export const ROOT = -1;

/** Whether nothing came of an answer: it is no part of what was said. */
export const isEmpty = (node) => node.role === "model" && node.finish === "failed" && node.tokens.length === 0;

export class Conversation {
  constructor({ id = newId(), title = "", mode, system = "", changed = Date.now(), shown = null, nodes = [] }) {
    Object.assign(this, { id, title, mode, system, changed, shown, nodes });
    this.stopper = null; // of the answer that is being written, an AbortController
  }

  /** The nodes that are shown, from the first to the last. */
  path() {
    return this.pathTo(this.last());
  }

  /** The nodes from the first to this one. */
  pathTo(index) {
    const path = [];
    for (let at = index; at !== ROOT; at = this.nodes[at].parent) path.unshift(at);
    return path;
  }

  /** The last node that is shown. */
  last() {
    let at = ROOT;
    for (let next = this.shown; next !== null; next = this.nodes[at].shown) at = next;
    return at;
  }

  /** A node and those that stand beside it, in the order in which they were made. */
  siblings(index) {
    const { parent } = this.nodes[index];
    return this.nodes.flatMap((node, at) => (node.parent === parent ? [at] : []));
  }

  /** Add a node after another, show it, and return its place. */
  add(parent, node) {
    this.nodes.push({ text: "", ...node, parent, shown: null });
    this.show(this.nodes.length - 1);
    return this.nodes.length - 1;
  }

  /** Show this one of its siblings. */
  show(index) {
    const { parent } = this.nodes[index];
    if (parent === ROOT) this.shown = index;
    else this.nodes[parent].shown = index;
    this.changed = Date.now();
  }

  /** The text up to and with this node. */
  textTo(index) {
    return this.pathTo(index).map((at) => this.nodes[at].text).join("");
  }

  /** What a chat's model is to answer: everything up to and with this node. */
  messagesTo(index) {
    const said = this.pathTo(index).flatMap((at) => {
      const { role, text } = this.nodes[at];
      return isEmpty(this.nodes[at]) ? [] : [{ role: role === "user" ? "user" : "assistant", content: text }];
    });
    return this.system.trim() ? [{ role: "system", content: this.system }, ...said] : said;
  }

  /** The ids with which a model's text goes on as it is; null where somebody wrote last, or nothing is known of them. */
  idsTo(index) {
    const node = this.nodes[index];
    if (node?.role !== "model" || !node.prompt) return null;
    return [...node.prompt, ...node.tokens.filter((token) => !token.end).map((token) => token.id)];
  }

  /**
   * Write the whole text otherwise: what is left as it was keeps its tokens, the rest is a new branch.
   * Returns the node after which one goes on; the same as before where nothing was changed.
   */
  rewrite(text) {
    let rest = text;
    for (const at of this.path()) {
      const node = this.nodes[at];
      if (rest.startsWith(node.text)) {
        rest = rest.slice(node.text.length);
        continue;
      }
      let parent = node.parent;
      if (node.role === "model") {
        const kept = keptBefore(node.tokens, rest);
        if (kept.length > 0) {
          const start = kept.map((token) => token.text).join("");
          parent = this.add(parent, { ...node, text: start, tokens: kept, finish: "stopped" });
          rest = rest.slice(start.length);
        }
      }
      if (rest) return this.add(parent, { role: "user", text: rest });
      if (parent === node.parent) this.cut(parent);
      return parent;
    }
    return rest ? this.add(this.last(), { role: "user", text: rest }) : this.last();
  }

  /** Show nothing after this node; what stood there can be had again with its arrows once something is added. */
  cut(index) {
    if (index === ROOT) this.shown = null;
    else this.nodes[index].shown = null;
    this.changed = Date.now();
  }
}

// Browsers have randomUUID only for pages that came encrypted, or from this machine.
const newId = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join("-");

/** The tokens with which a text begins, whole characters only. */
function keptBefore(tokens, text) {
  let length = 0;
  let kept = 0;
  for (const [place, token] of tokens.entries()) {
    if (!text.startsWith(token.text, length)) break;
    length += token.text.length;
    if (token.text) kept = place + 1; // one without text may be the beginning of a character
  }
  return tokens.slice(0, kept);
}

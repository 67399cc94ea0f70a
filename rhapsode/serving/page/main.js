// The page: which conversation is shown, what the buttons and keys do.

import * as api from "./api.js";
import { answerNode, promptAfter, writeAnswer } from "./answer.js";
import { Conversation, isEmpty, ROOT } from "./conversation.js";
import { showList, titleOf } from "./conversations.js";
import { element, find, whole } from "./dom.js";
import { conversationsOf, fileOf, LARGEST_FILE } from "./form.js";
import { GlassBox } from "./glass_box.js";
import { added, token } from "./pieces.js";
import { Settings, toggleSettings } from "./sampling.js";
import * as store from "./store.js";
import { speedText, Transcript } from "./transcript.js";

const METER_WAITS = 300; // milliseconds after the last key
const TOAST_STAYS = 8000;
const LONGEST_SPOKEN = 2000; // characters of an answer that are read out
const LIKE_BOTTOM = 80; // pixels from the end of the page that still count as its end
const PHONE = "(max-width: 40rem)"; // as in style.css
const THEMES = ["system", "light", "dark"];

const input = find("input");
let models = [];
let conversations = [];
let current = null;
let settings = null;
let kept = store.settings();

const transcript = new Transcript(find("transcript"), { act, open: lookInto });
const glass = new GlassBox(find("glass"), {
  choose: branch,
  moved: (index, k) => {
    transcript.mark(index, k);
    if (window.matchMedia(PHONE).matches) transcript.span(index, k)?.scrollIntoView({ block: "start" }); // above the sheet
  },
  closed: (index, k, hadFocus) => {
    transcript.mark();
    if (hadFocus) transcript.focus(index, k);
  },
});

// --- models and settings

const modelOf = (name) => models.find((each) => each.id === name);
const chosenModel = () => modelOf(find("model").value);
const modeOf = (model) => (model?.chat ? "chat" : "continuation");

/** Know of a model what the server says only once it is loaded. */
async function known(name) {
  if (modelOf(name)?.chat === null) await api.measure(name, { prompt: "a" }).catch(() => {});
  if (!modelOf(name) || modelOf(name).chat === null) {
    const told = await api.model(name);
    models = models.map((each) => (each.id === name ? told : each));
  }
  return modelOf(name);
}

let choosing = null; // until it is known what the chosen model does

const choose = () => (choosing = modelChosen());

async function modelChosen() {
  const name = find("model").value;
  rememberSettings();
  find("kind").textContent = "loading …";
  try {
    await known(name);
  } catch (error) {
    notice(error.message);
  }
  const mode = modeOf(modelOf(name));
  if (current.nodes.length === 0) current.mode = mode;
  else if (current.mode !== mode) begin();
  show();
}

function rememberSettings() {
  kept = { ...settings.values, model: find("model").value, theme: kept.theme ?? "system", coloured: kept.coloured ?? false };
  store.keepSettings(kept);
  find("summary").textContent = settings.summary();
}

// --- conversations

function begin() {
  const empty = conversations.find((each) => each.nodes.length === 0);
  current = empty ?? new Conversation({ mode: modeOf(chosenModel()) });
  current.mode = modeOf(chosenModel());
  if (!empty) conversations.unshift(current);
  glass.close();
  show();
}

function show() {
  const chat = current.mode === "chat";
  list();
  transcript.show(current, greeting());
  find("input-label").textContent = chat ? "Message" : "Text to add";
  input.placeholder = chat ? "Message" : current.nodes.length === 0 ? "Begin a text" : "Add to the text, or let it go on";
  find("kind").textContent = chosenModel() ? (chat ? "answers" : "continues text") : "";
  settings.showSystem(chat ? current.system : null);
  document.title = current.nodes.length > 0 ? `${titleOf(current)} · Rhapsode` : "Rhapsode";
  showWriting();
  measure();
}

function list() {
  const begun = conversations.filter((each) => each.nodes.length > 0);
  showList(find("conversations"), begun, current, { open: openConversation, rename, remove });
}

function greeting() {
  const model = chosenModel();
  const [title, text] = !model
    ? ["There is no model to talk with", "Start the server with one, as in: rhapsode serve runs/mytext"]
    : current.mode === "chat"
      ? [`Talk with ${model.id}`, "Each word of an answer can be clicked, to see what else the model weighed in its place."]
      : [`Write with ${model.id}`, "This model continues a text. Begin one below; each word it adds can be clicked, to see what else it weighed."];
  return element("div", { class: "greeting" }, element("h1", {}, title), element("p", {}, text));
}

function openConversation(conversation) {
  current = conversation;
  glass.close();
  const answered = [...current.nodes].reverse().find((node) => node.model && modelOf(node.model));
  if (answered) find("model").value = answered.model;
  drawer(false);
  show();
  toBottom();
  input.focus();
}

function rename(conversation, title) {
  conversation.title = title;
  keep(conversation);
  show();
}

function remove(conversation) {
  conversation.stopper?.abort();
  const place = conversations.indexOf(conversation);
  conversations.splice(place, 1);
  store.forget(conversation);
  if (conversation === current) conversations.length > 0 ? openConversation(conversations[Math.min(place, conversations.length - 1)]) : begin();
  else show();
  toast(`“${titleOf(conversation)}” is deleted.`, "Undo", () => {
    conversations.splice(place, 0, conversation);
    keep(conversation);
    openConversation(conversation);
  });
}

let storing = null; // what was said last of the storage

/** Keep what is worth it in the browser; say so where it cannot be. */
function keep(conversation) {
  if (conversation.nodes.length === 0 || !conversations.includes(conversation)) return;
  const isFull = conversations.filter((each) => each.nodes.length > 0).length > store.MOST;
  const full = `More than ${store.MOST} conversations are not kept. Export them, or delete some.`;
  const problem = isFull ? full : store.keep(conversation);
  if (problem !== storing) notice(problem);
  storing = problem;
}

function exportAll() {
  const file = new Blob([fileOf(conversations.filter((each) => each.nodes.length > 0))], { type: "application/json" });
  const address = URL.createObjectURL(file);
  element("a", { href: address, download: `rhapsode-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

async function importFile(file) {
  try {
    if (file.size > LARGEST_FILE) throw new Error(`It is larger than ${whole(LARGEST_FILE / 1e6)} MB.`);
    const read = conversationsOf(await file.text());
    conversations.unshift(...read);
    read.forEach(keep);
    toast(read.length === 1 ? "One conversation came in." : `${read.length} conversations came in.`);
    if (read.length > 0) openConversation(read[0]);
  } catch (error) {
    notice(`${file.name} was not taken in. ${error.message}`);
  }
}

// --- writing

async function send() {
  await choosing;
  if (current.stopper || !chosenModel()) return;
  const text = input.value;
  const chat = current.mode === "chat";
  if (chat && !text.trim()) return;
  input.value = "";
  grow();
  let last = current.last();
  if (text) last = current.add(last, { role: "user", text });
  await answer(last);
}

/** Have an answer written after a node. */
function answer(parent) {
  const index = current.add(parent, answerNode(chosenModel().id, settings.sampling()));
  return write(index, promptAfter(current, parent));
}

/** Write on from token `k` of an answer with another one. */
async function branch(index, k, chosen) {
  if (current.stopper) {
    notice("An answer is being written: stop it first.");
    return;
  }
  const conversation = current;
  const node = conversation.nodes[index];
  const before = node.tokens.slice(0, k);
  const text = added(before, chosen);
  const logprob = chosen.probability > 0 ? Math.log(chosen.probability) : null;
  const kept = [...before, token({ id: chosen.id, text, logprob, bytes: chosen.bytes, end: chosen.end })];
  const made = conversation.add(node.parent, answerNode(node.model, settings.sampling(), { prompt: node.prompt, kept }));
  glass.close();
  if (chosen.end) {
    conversation.nodes[made].finish = "stop";
    keep(conversation);
    show();
    transcript.focus(made, k);
    return;
  }
  await write(made, { prompt: [...node.prompt, ...kept.map((each) => each.id)] });
}

async function write(index, asked) {
  const conversation = current;
  const node = conversation.nodes[index];
  notice(null);
  const writing = writeAnswer(conversation, index, asked, {
    contextLength: async (name) => (await known(name)).max_model_len, grown: (at) => grown(conversation, at),
  });
  show();
  toBottom();
  keep(conversation);
  await writing;
  keep(conversation);
  if (conversation !== current) return;
  const atBottom = isAtBottom();
  const focused = document.activeElement === find("stop") || document.activeElement === document.body;
  show();
  if (atBottom) toBottom();
  if (focused) input.focus();
  find("spoken").textContent = node.error ?? `${node.model}: ${node.text.slice(0, LONGEST_SPOKEN)}`;
}

function grown(conversation, index) {
  if (conversation !== current) return;
  const atBottom = isAtBottom();
  transcript.grow(index);
  if (atBottom) toBottom();
  const { speed } = conversation.nodes[index];
  find("speed").textContent = speed ? `${speedText(speed)} tokens/s` : "";
}

function showWriting() {
  const writing = current.stopper !== null;
  find("send").hidden = writing;
  find("stop").hidden = !writing;
  find("send").setAttribute("aria-label", current.mode === "chat" ? "Send" : "Continue the text");
  if (!writing) find("speed").textContent = "";
}

/** What a button below a message does. */
function act(name, index) {
  const node = current.nodes[index];
  const beside = current.siblings(index);
  const acts = {
    before: () => step(beside[beside.indexOf(index) - 1], name),
    after: () => step(beside[beside.indexOf(index) + 1], name),
    copy: () => copy(current.mode === "chat" ? node.text : current.textTo(current.last())),
    regenerate: () => (isEmpty(node) ? write(index, promptAfter(current, node.parent)) : answer(node.parent)),
    extend: () => write(index, { prompt: current.idsTo(index) }),
    edit: () => edit(index),
  };
  acts[name]();
}

function step(index, name) {
  if (index === undefined) return;
  glass.close();
  current.show(index);
  keep(current);
  show();
  const again = document.querySelector(`[data-act="${name}"][data-index="${index}"]`);
  if (again?.disabled) again.parentElement.querySelector("button:not([disabled])")?.focus();
  else again?.focus();
}

function edit(index) {
  glass.close();
  if (current.mode === "chat") {
    transcript.edit(index, current.nodes[index].text, "Your message", (text) => {
      if (text === null || !text.trim() || text === current.nodes[index].text) show();
      else answer(current.add(current.nodes[index].parent, { role: "user", text }));
    });
    return;
  }
  transcript.edit(ROOT, current.textTo(current.last()), "The whole text", (text) => {
    if (text !== null) {
      current.rewrite(text);
      keep(current);
    }
    show();
    input.focus();
  });
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied.");
  } catch {
    notice("The browser does not let this page copy.");
  }
}

function lookInto(index, k) {
  const fromKeyboard = document.activeElement?.classList.contains("token") && document.activeElement.matches(":focus-visible");
  toggleSettings(false);
  glass.show(current, index, k);
  if (fromKeyboard) glass.focus();
}

// --- the meter

let measuring = null;
let waiting = null;

function measure() {
  clearTimeout(waiting);
  waiting = setTimeout(async () => {
    const model = chosenModel();
    measuring?.abort();
    if (!model || current.stopper) return;
    measuring = new AbortController();
    try {
      showMeter(await length(model, measuring.signal));
    } catch (error) {
      if (!api.isStop(error)) find("meter").hidden = true; // the answer itself will say what is wrong
    }
  }, METER_WAITS);
}

/** The length of what would be sent now. */
async function length(model, signal) {
  const text = input.value;
  const last = current.last();
  const context = model.max_model_len;
  if (current.mode === "chat") {
    const messages = [...current.messagesTo(last), ...(text ? [{ role: "user", content: text }] : [])];
    return messages.length > 0 ? api.measure(model.id, { messages }, signal) : { count: 0, context };
  }
  const ids = text ? null : current.idsTo(last);
  if (ids) return { count: ids.length, context };
  const prompt = current.textTo(last) + text;
  return prompt ? api.measure(model.id, { prompt }, signal) : { count: 0, context };
}

function showMeter({ count, context }) {
  const meter = find("meter");
  meter.hidden = !context;
  if (!context) return;
  const share = count / context;
  find("meter-bar").style.width = `${Math.min(100, 100 * share)}%`;
  find("meter-text").textContent = `${whole(count)} of ${whole(context)} tokens`;
  meter.classList.toggle("near", share > 0.85);
  meter.classList.toggle("over", share > 1);
  meter.setAttribute("aria-valuemax", context);
  meter.setAttribute("aria-valuenow", count);
  meter.setAttribute("aria-valuetext", `${count} of ${context} tokens`);
}

// --- small things

function notice(message) {
  const dismiss = element("button", { type: "button", class: "quiet", onclick: () => notice(null) }, "Dismiss");
  find("notices").replaceChildren(...(message ? [element("p", { class: "error" }, element("span", {}, message), dismiss)] : []));
}

let toasting = null;

function toast(message, label = null, undo = null) {
  clearTimeout(toasting);
  const box = find("toast");
  const close = () => (box.hidden = true);
  const button = label && element("button", { type: "button", class: "quiet", onclick: () => (close(), undo()) }, label);
  box.replaceChildren(element("span", {}, message), ...(button ? [button] : []));
  box.hidden = false;
  toasting = setTimeout(close, TOAST_STAYS);
}

const isAtBottom = () => find("scroll").scrollHeight - find("scroll").scrollTop - find("scroll").clientHeight < LIKE_BOTTOM;
const toBottom = () => (find("scroll").scrollTop = find("scroll").scrollHeight);

/** Let the field be as high as its text. */
function grow() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

function drawer(open) {
  document.body.classList.toggle("drawer", open);
  find("backdrop").hidden = !open;
  find("drawer-open").setAttribute("aria-expanded", String(open));
  if (open) find("drawer-close").focus();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  const label = { system: "Colours as the system has them", light: "Light colours", dark: "Dark colours" }[name];
  find("theme").setAttribute("aria-label", label);
  find("theme").title = label;
}

function colour(on) {
  document.body.classList.toggle("coloured", on);
  find("colour").setAttribute("aria-pressed", String(on));
  find("legend").hidden = !on;
}

function listen() {
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  input.addEventListener("input", () => {
    grow();
    measure();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    if (glass.open) glass.close();
    else if (document.body.classList.contains("drawer")) drawer(false), find("drawer-open").focus();
    else if (!find("settings").hidden) toggleSettings(false), find("settings-open").focus();
    else current.stopper?.abort();
  });
  find("stop").addEventListener("click", () => current.stopper?.abort());
  find("new").addEventListener("click", () => {
    begin();
    drawer(false);
    input.focus();
  });
  find("model").addEventListener("change", choose);
  find("drawer-open").addEventListener("click", () => drawer(true));
  find("drawer-close").addEventListener("click", () => (drawer(false), find("drawer-open").focus()));
  find("backdrop").addEventListener("click", () => drawer(false));
  for (const id of ["settings-open", "summary"]) {
    find(id).addEventListener("click", () => {
      glass.close();
      toggleSettings();
    });
  }
  find("settings-close").addEventListener("click", () => (toggleSettings(false), find("settings-open").focus()));
  find("theme").addEventListener("click", () => {
    kept.theme = THEMES[(THEMES.indexOf(kept.theme ?? "system") + 1) % THEMES.length];
    theme(kept.theme);
    store.keepSettings(kept);
  });
  find("colour").addEventListener("click", () => {
    kept.coloured = !kept.coloured;
    colour(kept.coloured);
    store.keepSettings(kept);
  });
  find("export").addEventListener("click", exportAll);
  find("import").addEventListener("click", () => find("file").click());
  find("file").addEventListener("change", async () => {
    const [file] = find("file").files;
    if (file) await importFile(file);
    find("file").value = "";
  });
  window.addEventListener("pagehide", () => conversations.filter((each) => each.stopper).forEach((each) => store.keep(each)));
  store.onChange(() => {
    const mine = conversations.filter((each) => each === current || each.stopper || each.nodes.length === 0);
    const theirs = store.load().conversations.filter((each) => mine.every((one) => one.id !== each.id));
    conversations = [...mine, ...theirs].sort((one, other) => other.changed - one.changed);
    list();
  });
}

async function start() {
  kept.theme = THEMES.includes(kept.theme) ? kept.theme : "system";
  kept.coloured = kept.coloured === true;
  theme(kept.theme);
  colour(kept.coloured);
  const loaded = store.load();
  conversations = loaded.conversations;
  let told = { default: { temperature: 0.8, top_p: 0.95, top_k: 0, min_p: 0, typical_p: 1, repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0 }, styles: {} };
  let problem = loaded.problem;
  storing = problem;
  try {
    [models, told] = await Promise.all([api.models(), api.styles()]);
  } catch (error) {
    problem = error.message;
  }
  models = models.filter((each) => each.kind === "decoder");
  find("model").append(...models.map((each) => element("option", { value: each.id }, each.id)));
  if (modelOf(kept.model)) find("model").value = kept.model;
  settings = new Settings(find("settings-body"), {
    defaults: told.default, styles: told.styles, kept,
    changed: rememberSettings,
    systemChanged: (text) => {
      current.system = text;
      keep(current);
      measure();
    },
  });
  find("summary").textContent = settings.summary();
  listen();
  begin();
  if (problem) notice(problem);
  if (chosenModel()) await choose();
  input.focus();
}

start();

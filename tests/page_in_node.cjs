/* A report's page without a browser: as much of a document as its scripts use.

   Reads {page, scripts, script, narrow, without} from standard input: the page's elements as [tag,
   attributes, children], what its scripts are, a script that is run last, and ids of elements that
   are to be missing; writes what the last script returns.
   Nothing has a size and nothing is painted: tests/test_page.py sees to that, in a browser. */
"use strict";

const vm = require("vm");

const given = JSON.parse(require("fs").readFileSync(0));

class Target {
  listeners = {};

  addEventListener(type, listener) {
    (this.listeners[type] ??= []).push(listener);
  }

  dispatchEvent(event) {
    event.target ??= this;
    for (const listener of this.listeners[event.type] ?? []) listener(event);
    const above = this === document ? null : this.parent ?? document;
    if (event.bubbles) above?.dispatchEvent(event);
    return true;
  }
}

class Event {
  constructor(type, { bubbles = false, ...others } = {}) {
    Object.assign(this, { type, bubbles, ...others, preventDefault: () => {} });
  }
}

const dashed = (name) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

class Text {
  constructor(data) {
    this.textContent = String(data);
  }
}

class Element extends Target {
  childNodes = [];
  attributes = {};
  value = "";

  constructor(tag) {
    super();
    this.localName = tag;
    this.dataset = new Proxy({}, {
      get: (_, name) => this.attributes[`data-${dashed(name)}`],
      set: (_, name, value) => this.setAttribute(`data-${dashed(name)}`, value) ?? true,
    });
  }

  get tagName() {
    return this.closest("svg") ? this.localName : this.localName.toUpperCase();
  }

  setAttribute(name, value) {
    this.attributes[name] = String(value);
    if (name === "value") this.value = String(value);
  }

  getAttribute(name) {
    return this.attributes[name] ?? null;
  }

  get classList() {
    const all = () => (this.attributes.class ?? "").split(/\s+/).filter(Boolean);
    const toggle = (name, force = !all().includes(name)) => {
      const others = all().filter((each) => each !== name);
      this.className = [...others, ...(force ? [name] : [])].join(" ");
    };
    const [add, remove] = [(name) => toggle(name, true), (name) => toggle(name, false)];
    return { toggle, add, remove, contains: (name) => all().includes(name) };
  }

  styles = { setProperty: (name, value) => (this.attributes.style = `${name}: ${value}`) };

  get style() {
    return this.styles;
  }

  set style(text) {
    this.attributes.style = text;
  }

  append(...nodes) {
    for (const node of nodes) {
      const made = node instanceof Element ? node : new Text(node);
      if (made.parent) made.parent.childNodes.splice(made.parent.childNodes.indexOf(made), 1);
      made.parent = this;
      if (made.textContent !== "" || made instanceof Element) this.childNodes.push(made);
    }
  }

  replaceChildren(...nodes) {
    for (const node of this.childNodes) node.parent = null;
    this.childNodes = [];
    this.append(...nodes);
  }

  get parentElement() {
    return this.parent;
  }

  get children() {
    return this.childNodes.filter((node) => node instanceof Element);
  }

  get lastChild() {
    return this.childNodes.at(-1);
  }

  get textContent() {
    return this.childNodes.map((node) => node.textContent).join("");
  }

  set textContent(words) {
    this.replaceChildren(words);
  }

  /** Of all that lies below, in order, what is wanted; `most`: how many. */
  find(wanted, most = Infinity, found = []) {
    for (const child of this.childNodes) {
      if (found.length >= most) break;
      if (!(child instanceof Element)) continue;
      if (wanted(child)) found.push(child);
      child.find(wanted, most, found);
    }
    return found;
  }

  /** Of `tag#id.class[name=value]`, one part. */
  is(selector) {
    const parts = selector.match(/[#.]?[\w-]+|\[[^\]]+\]|\*/g);
    return parts.every((part) => {
      if (part[0] === "#") return this.id === part.slice(1);
      if (part[0] === ".") return this.classList.contains(part.slice(1));
      if (part[0] !== "[") return part === "*" || this.localName === part;
      const [name, value] = part.slice(1, -1).replaceAll(/['"]/g, "").split("=");
      return name in this.attributes && (value ?? this.attributes[name]) === this.attributes[name];
    });
  }

  matches(selector) {
    const parts = selector.trim().split(/\s+(?:>\s+)?/); // a child counts as what lies below
    if (!this.is(parts.pop())) return false;
    let above = this.parent;
    while (parts.length && above) {
      if (above.is(parts.at(-1))) parts.pop();
      above = above.parent;
    }
    return parts.length === 0;
  }

  querySelectorAll(selectors) {
    if (selectors.includes(":")) return []; // a state that nothing here is in
    return this.find((one) => selectors.split(",").some((each) => one.matches(each)));
  }

  querySelector(selectors) {
    return this.querySelectorAll(selectors)[0] ?? null;
  }

  closest(selector) {
    return this.is(selector) ? this : this.parent?.closest(selector) ?? null;
  }

  click() {
    if (!this.disabled) this.dispatchEvent(new Event("click", { bubbles: true }));
  }

  focus() {
    document.activeElement?.dispatchEvent(new Event("blur"));
    focused = this;
    this.dispatchEvent(new Event("focus"));
  }

  blur() {
    focused = null;
    this.dispatchEvent(new Event("blur"));
  }

  getBoundingClientRect() {
    return { left: 0, right: 0, top: 0, bottom: 0, width: 200, height: 40 };
  }

  // ---- Tables

  get rows() {
    return this.find((one) => one.localName === "tr");
  }

  get rowIndex() {
    return this.closest("table").rows.indexOf(this);
  }

  get cellIndex() {
    return this.parent.children.indexOf(this);
  }

  clientWidth = 1000;
}

// What stands for an attribute of almost the same name.
const REFLECTED = ["id", "role", "type", "href", "ariaLabel", "ariaLive", "ariaPressed", "tabIndex"];
for (const name of [...REFLECTED, "ariaValueText"]) {
  const attribute = name.startsWith("aria") ? `aria-${name.slice(4).toLowerCase()}` : dashed(name);
  Object.defineProperty(Element.prototype, name, {
    get() { return this.attributes[attribute.replace("tab-index", "tabindex")] ?? ""; },
    set(value) { this.setAttribute(attribute.replace("tab-index", "tabindex"), value); },
  });
}
Object.defineProperty(Element.prototype, "className", {
  get() { return this.attributes.class ?? ""; },
  set(value) { this.attributes.class = value; },
});

function built([tag, attributes, children]) {
  const made = new Element(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value ?? "");
  if ("hidden" in attributes) made.hidden = true;
  made.append(...children.map((child) => (typeof child === "string" ? child : built(child))));
  return made;
}

let focused = null;
let waiting = [];
const root = built(given.page);
const document = Object.assign(new Target(), {
  documentElement: root,
  body: root.querySelector("body"),
  createElement: (tag) => new Element(tag),
  createElementNS: (_, tag) => new Element(tag),
  getElementById: (id) => root.find((one) => one.attributes.id === id, 1)[0] ?? null,
  querySelector: (selectors) => root.querySelector(selectors),
  querySelectorAll: (selectors) => root.querySelectorAll(selectors),
});
for (const id of given.without ?? []) document.getElementById(id)?.setAttribute("id", "");
Object.defineProperty(document, "activeElement", {
  get: () => (focused && root.find((one) => one === focused, 1)[0] || document.body),
});

Object.assign(globalThis, {
  document,
  innerWidth: 1000,
  innerHeight: 800,
  Event,
  CustomEvent: Event,
  KeyboardEvent: Event,
  addEventListener: () => {},
  matchMedia: (query) => {
    const matches = query.includes("max-width") && Boolean(given.narrow);
    return Object.assign(new Target(), { matches });
  },
  setTimeout: (work) => waiting.push(work),
  clearTimeout: (number) => delete waiting[number - 1],
  /** Lets time pass: does what waits. Returns how much that was. */
  settle: () => {
    const all = waiting.filter(Boolean);
    waiting = [];
    all.forEach((work) => work());
    return all.length;
  },
  at: (id) => document.getElementById(id),
  said: [],
});

for (const script of given.scripts) vm.runInThisContext(script);
console.log(JSON.stringify(vm.runInThisContext(`(() => { ${given.script} })()`) ?? null));

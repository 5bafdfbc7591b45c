/* What the page does beside being read: light and dark, numbers on hover, focus and touch, copying tables, keys in pictures. */
"use strict";

(() => {
  const root = document.documentElement;

  // Light and dark: the system's choice, until the button is used.
  const button = document.getElementById("theme"), system = matchMedia("(prefers-color-scheme: dark)");
  function theme(name) {
    root.dataset.theme = name;
    button.textContent = name === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(name === "dark"));
    button.setAttribute("aria-label", `switch to the ${name === "dark" ? "light" : "dark"} theme`);
  }
  function kept(value) {
    try { return value ? localStorage.setItem("minifunc-theme", value) : localStorage.getItem("minifunc-theme"); } catch { return null; }
  }
  theme(["light", "dark"].includes(kept()) ? kept() : system.matches ? "dark" : "light");
  system.addEventListener("change", (event) => kept() || theme(event.matches ? "dark" : "light"));
  button.addEventListener("click", () => { theme(root.dataset.theme === "dark" ? "light" : "dark"); kept(root.dataset.theme); });

  // Numbers: whatever has a data-tip shows it.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "status");
  document.body.append(tip);
  function show(target, x, y) {
    if (!target || !target.dataset.tip) return hide();
    tip.textContent = target.dataset.tip;
    tip.className = "shown";
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${y + 22 + box.height > innerHeight ? y - box.height - 12 : y + 18}px`;
  }
  function hide() { tip.className = ""; }
  for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, (event) => show(event.target.closest?.("[data-tip]"), event.clientX, event.clientY));
  document.addEventListener("focusin", (event) => {
    const target = event.target.closest("[data-tip]"), box = event.target.getBoundingClientRect();
    if (target && event.target.matches(":focus-visible")) show(target, box.left + box.width / 2, box.bottom - 12);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, { passive: true, capture: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());

  // One stop of the tab key for each heat map and picture; the arrow keys move inside.
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  for (const map of document.querySelectorAll("table.heat, svg.bars, svg.curves, svg.attention")) {
    const items = [...map.querySelectorAll("[data-tip]")];
    items.forEach((item, index) => item.setAttribute("tabindex", index ? "-1" : "0"));
    if (map.tagName !== "TABLE") {
      map.setAttribute("role", "group"); // what is inside an image is hidden from screen readers
      items.forEach((item) => { item.setAttribute("role", "img"); item.setAttribute("aria-label", item.dataset.tip); });
    }
    map.addEventListener("keydown", (event) => {
      const step = STEPS[event.key], index = items.indexOf(document.activeElement);
      if (!step || index < 0) return;
      event.preventDefault();
      let next = items[index + step[0] + step[1]];
      if (map.tagName === "TABLE") {
        const cell = items[index], row = cell.parentElement;
        const cells = step[1] ? (step[1] < 0 ? row.previousElementSibling : row.nextElementSibling)?.children : row.children;
        next = cells?.[cell.cellIndex + step[0]];
      }
      if (!next?.dataset.tip) return;
      items[index].setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }

  // Tables can be copied, into a spreadsheet for instance.
  async function copy(text) {
    try { await navigator.clipboard.writeText(text); } catch {
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }
  for (const table of document.querySelectorAll("table")) {
    const copier = Object.assign(document.createElement("button"), { type: "button", className: "copy", textContent: "Copy" });
    const name = table.caption?.textContent ?? "table";
    copier.setAttribute("aria-label", `copy the table: ${name}`);
    copier.addEventListener("click", async () => {
      await copy([...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()).join("\t")).join("\n"));
      copier.textContent = "Copied";
      setTimeout(() => (copier.textContent = "Copy"), 1200);
    });
    table.caption?.append(" ", copier);
  }

  // A link into something folded opens it; the section at hand is marked in the navigation.
  function unfold() {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let parent = target; parent; parent = parent.parentElement) if (parent.tagName === "DETAILS") parent.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", unfold);
  unfold();
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.getAttribute("href"), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(`#${entry.target.id}`);
      if (link && entry.isIntersecting) {
        links.forEach((other) => other.removeAttribute("aria-current"));
        link.setAttribute("aria-current", "true");
      }
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main > section").forEach((section) => watcher.observe(section));
})();

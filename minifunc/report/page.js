/* What the page does beside being read: light and dark, numbers and meanings on hover, focus and
   touch, keys in pictures. */
"use strict";

(() => {
  // ---- Light and dark: the system's choice, until the button is used.
  const root = document.documentElement;
  const button = document.getElementById("theme");

  function showTheme(name) {
    root.dataset.theme = name;
    button.textContent = name === "dark" ? "light theme" : "dark theme";
  }

  showTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  button.addEventListener("click", () => showTheme(button.textContent.split(" ")[0]));

  // ---- Numbers and the meanings of terms: whatever has a data-tip shows it.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.role = "status";
  document.body.append(tip);

  const hideTip = () => tip.classList.remove("shown");

  function showTip(target, x, y) {
    if (!target?.dataset.tip) return hideTip();
    tip.textContent = target.dataset.tip;
    tip.classList.add("shown");
    const { width, height } = tip.getBoundingClientRect();
    const fitsBelow = y + 22 + height <= innerHeight;
    tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${fitsBelow ? y + 18 : y - height - 12}px`;
  }

  const followPointer = ({ target, clientX, clientY }) =>
    showTip(target.closest?.("[data-tip]"), clientX, clientY);

  /** Of what the keyboard has reached; reaching it may scroll the page. */
  function followFocus() {
    const target = document.querySelector("[data-tip]:focus-visible");
    const box = target?.getBoundingClientRect();
    showTip(target, box?.left + box?.width / 2, box?.bottom - 12);
  }

  for (const name of ["pointermove", "pointerdown"]) document.addEventListener(name, followPointer);
  document.addEventListener("focusin", followFocus);
  document.addEventListener("focusout", hideTip);
  document.addEventListener("scroll", followFocus, { passive: true, capture: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());

  // ---- One stop of the tab key for each heat map and picture; the arrow keys move inside.
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function makeWalkable(map) {
    const isTable = map.tagName === "TABLE";
    if (!isTable) map.role = "group"; // screen readers see nothing inside an image
    const items = [...map.querySelectorAll("[data-tip]")];
    items.forEach((item, index) => {
      item.tabIndex = index ? -1 : 0;
      if (!isTable) item.role = "img";
      if (!isTable || !item.textContent) item.ariaLabel = item.dataset.tip;
    });
    map.addEventListener("keydown", (event) => {
      const [across, down] = STEPS[event.key] ?? [];
      const index = items.indexOf(document.activeElement);
      if (!STEPS[event.key] || index < 0) return;
      event.preventDefault();
      const { cellIndex, parentElement } = items[index];
      const next = isTable ? map.rows[parentElement.rowIndex + down]?.children[cellIndex + across]
        : items[index + across + down];
      if (!next?.dataset.tip) return;
      items[index].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }

  document.querySelectorAll("table.heat, svg.bars").forEach(makeWalkable);
  document.addEventListener("drawn", ({ target }) => makeWalkable(target)); // by a script

  addEventListener("beforeprint", () => { // on paper nothing is folded
    for (const folded of document.querySelectorAll("#details > details")) folded.open = true;
  });
})();

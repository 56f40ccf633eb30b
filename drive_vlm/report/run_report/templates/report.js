"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const root = document.documentElement;
  const theme = by("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  // Folded parts are on paper too.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
  document.querySelectorAll(".strip svg").forEach((picture) =>
    picture.addEventListener("click", () => picture.closest("figure").classList.toggle("large")));
  const controls = by("controls");
  if (!controls) return;
  controls.hidden = false;
  controls.addEventListener("submit", (event) => event.preventDefault());
  const list = by("examples");
  const articles = [...list.children];
  const orders = {
    up: (a, b) => a.dataset.gain - b.dataset.gain,
    down: (a, b) => b.dataset.gain - a.dataset.gain,
    change: (a, b) => a.dataset.change - b.dataset.change,
    id: (a, b) => a.dataset.id.localeCompare(b.dataset.id),
  };
  const shown = () => articles.filter((one) => !one.hidden);
  const update = () => {
    const words = by("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const one of articles) {
      const text = one.textContent.toLowerCase();
      one.hidden = !((!by("kind").value || one.dataset.kinds.split(" ").includes(by("kind").value))
        && (!by("alike").value || one.dataset.alike === by("alike").value)
        && words.every((word) => text.includes(word)));
    }
    list.append(...[...articles].sort(orders[by("sort").value]));
    by("count").textContent = `${shown().length} of ${articles.length}`;
  };
  ["kind", "alike", "sort"].forEach((id) => by(id).addEventListener("change", update));
  by("search").addEventListener("input", update);
  const say = (button, words) => {
    const before = button.textContent;
    button.textContent = words;
    setTimeout(() => { button.textContent = before; }, 1500);
  };
  by("copy").addEventListener("click", (event) => {
    const ids = shown().map((one) => one.dataset.id).join("\n");
    navigator.clipboard.writeText(ids).then(() => say(event.target, "copied"), () => say(event.target, "the browser refuses"));
  });
  if (by("download")) by("download").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([by("row-scores").textContent], { type: "application/json" }));
    link.download = "row_scores.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  update();
})();

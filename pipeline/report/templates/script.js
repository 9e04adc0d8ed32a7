"use strict";
for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector("svg"), cursor = figure.querySelector(".cursor"), values = figure.querySelector(".values");
  const { x: name, limits: [first, last], box, curves } = JSON.parse(figure.querySelector("script").textContent);
  const every = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  let at = every.length - 1;
  const nearest = (list, x) => list.reduce((best, each, i) => Math.abs(each - x) < Math.abs(list[best] - x) ? i : best, 0);
  const show = () => {
    const x = every[at], place = box.left + (x - first) / (last - first) * (box.right - box.left);
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.removeAttribute("hidden");
    const lines = [`${name} ${x.toLocaleString("en")}`];
    for (const curve of curves) {
      if (curve.x.length) lines.push(`${curve.name}: ${curve.y[nearest(curve.x, x)].toPrecision(5)}`);
    }
    values.replaceChildren(...lines.map((text) => Object.assign(document.createElement("div"), { textContent: text })));
    values.hidden = false;
    const share = place / box.width;
    values.style.left = share < 0.5 ? `calc(${100 * share}% + 10px)` : "auto";
    values.style.right = share < 0.5 ? "auto" : `calc(${100 - 100 * share}% + 10px)`;
  };
  const hide = () => { cursor.setAttribute("hidden", ""); values.hidden = true; };
  svg.addEventListener("pointermove", (event) => {
    const area = svg.getBoundingClientRect(), place = (event.clientX - area.left) / area.width * box.width;
    at = nearest(every, first + (place - box.left) / (box.right - box.left) * (last - first));
    show();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined || !every.length) return;
    event.preventDefault();
    at = Math.min(every.length - 1, Math.max(0, at + by));
    show();
  });
}
for (const figure of document.querySelectorAll(".slider")) {
  const handle = figure.querySelector("input"), pair = figure.querySelector(".pair");
  handle.addEventListener("input", () => pair.style.setProperty("--cut", `${handle.value}%`));
}
for (const figure of document.querySelectorAll(".film")) {
  const handle = figure.querySelector("input"), frames = [...figure.querySelectorAll(".frame")], says = figure.querySelector("output");
  handle.addEventListener("input", () => {
    frames.forEach((frame, i) => { frame.hidden = i !== Number(handle.value); });
    says.textContent = frames[Number(handle.value)].dataset.name;
  });
}
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
      button.textContent = "selected";
    }
  });
}

/* Read a chart: the pointer, a finger or the arrow keys choose an x; the legend shows every series' value there. */
"use strict";

(() => {
  for (const figure of document.querySelectorAll(".chart")) {
    const svg = figure.querySelector(":scope > svg"); // the legend has small ones of its own
    const cursor = figure.querySelector(".cursor");
    const place = figure.querySelector(".chart-at");
    const values = Array.from(figure.querySelectorAll(".chart-value"));
    // stops: [x in drawing units, x as text, value of each series as text]; the last one is what the page starts with.
    const { stops } = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    if (!stops.length) continue;
    let at = stops.length - 1;

    const show = (index, isActive) => {
      at = Math.max(0, Math.min(stops.length - 1, index));
      const [x, label, texts] = stops[at];
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.classList.toggle("is-active", isActive);
      place.textContent = label;
      values.forEach((node, i) => { node.textContent = texts[i]; });
    };
    const nearest = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      return stops.reduce((best, stop, i) => (Math.abs(stop[0] - x) < Math.abs(stops[best][0] - x) ? i : best), 0);
    };
    svg.addEventListener("pointermove", (event) => show(nearest(event), true));
    svg.addEventListener("pointerdown", (event) => show(nearest(event), true));
    svg.addEventListener("pointerleave", () => show(stops.length - 1, false));
    svg.addEventListener("focus", () => show(at, true));
    svg.addEventListener("blur", () => show(stops.length - 1, false));
    svg.addEventListener("keydown", (event) => {
      const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: stops.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      show(next, true);
    });
  }
})();

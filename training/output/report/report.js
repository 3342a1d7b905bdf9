"use strict";
// Without this script, the page shows the last samples, the start of each way and all curves.

for (const film of document.querySelectorAll(".film")) {
  const frames = [...film.querySelectorAll(".frame")];
  const controls = film.querySelector(".controls");
  if (frames.length < 2) continue;
  const slider = controls.querySelector("input"), button = controls.querySelector("button");
  let timer = 0;
  const show = (index) => {
    frames.forEach((frame, other) => { frame.hidden = other !== index; });
    slider.value = index;
    slider.setAttribute("aria-valuetext", frames[index].dataset.label);
    controls.querySelector("output").textContent = frames[index].dataset.label;
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    button.textContent = "Play";
  };
  const play = () => {
    if (+slider.value === frames.length - 1) show(0);
    button.textContent = "Pause";
    timer = setInterval(() => {
      if (+slider.value < frames.length - 1) show(+slider.value + 1);
      if (+slider.value === frames.length - 1) stop();
    }, Math.max(120, Math.min(700, 5000 / frames.length)));
  };
  button.addEventListener("click", () => (timer ? stop() : play()));
  slider.addEventListener("input", () => { stop(); show(+slider.value); });
  controls.hidden = false;
  show(frames.length - 1);
}

for (const ways of document.querySelectorAll(".ways")) {
  const controls = ways.querySelector(".controls"), slider = controls.querySelector("input");
  const last = +slider.max;
  const show = (place) => {
    const whole = Math.max(0, Math.min(last, Math.round(place)));
    ways.style.setProperty("--frame", whole / last);
    slider.value = whole;
    slider.setAttribute("aria-valuetext", `${Math.round(100 * whole / last)} % of the way`);
  };
  slider.addEventListener("input", () => show(+slider.value));
  // An image can be dragged itself: from its left edge to its right edge is the whole way.
  for (const image of ways.querySelectorAll(".way")) {
    const follow = (event) => {
      const box = image.getBoundingClientRect();
      show(last * (event.clientX - box.left) / box.width);
    };
    image.addEventListener("pointerdown", (event) => { image.setPointerCapture(event.pointerId); follow(event); });
    image.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" || image.hasPointerCapture(event.pointerId)) follow(event);
    });
  }
  controls.hidden = false;
  show(last / 2);
}

for (const chart of document.querySelectorAll("svg[data-points]")) {
  const points = JSON.parse(chart.dataset.points);
  const note = chart.parentElement.querySelector(".note");
  const dot = document.createElementNS(chart.namespaceURI, "circle");
  dot.setAttribute("r", 4);
  dot.setAttribute("class", "hover");
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect(), scale = chart.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    // Along the steps first: the distance upward only decides between two curves.
    const distance = (point) => Math.abs(point[0] - x) + 0.1 * Math.abs(point[1] - y);
    const nearest = points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
    dot.setAttribute("cx", nearest[0]);
    dot.setAttribute("cy", nearest[1]);
    chart.append(dot);
    note.textContent = nearest[2];
  });
  chart.addEventListener("pointerleave", () => { dot.remove(); note.textContent = ""; });
}

for (const button of document.querySelectorAll("button.copy")) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

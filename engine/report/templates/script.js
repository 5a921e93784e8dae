"use strict";
(() => {
  const element = document.getElementById("what-if");
  const data = element ? JSON.parse(element.textContent) : null;
  const grouped = (value) => value.toLocaleString("en-US");
  const SIDES = { min: 0, above: 0, max: 1, below: 1 };
  const moved = new Map(); // criterion → { bound: index of its value }

  // Rows of a population between two bounds. `min` and `below` count scores below the value, `above` and `max` up to it.
  function rows(population, bounds) {
    let low = 0;
    let high = population.total;
    for (const [key, index] of Object.entries(bounds)) {
      const count = (key === "min" || key === "below" ? population.below : population.up_to)[index];
      if (SIDES[key]) high = count;
      else low = count;
    }
    return Math.max(high - low, 0);
  }

  function change(now, before) {
    const difference = now - before;
    return difference ? ` (${difference > 0 ? "+" : "−"}${grouped(Math.abs(difference))})` : "";
  }

  function part(tag, content) {
    const made = document.createElement(tag);
    made.textContent = content;
    return made;
  }

  function show(panel) {
    const found = data.criteria[panel.dataset.criterion];
    const bounds = {};
    for (const input of panel.querySelectorAll("input")) {
      const index = Number(input.value);
      bounds[input.dataset.bound] = index;
      const value = String(Number(found.values[index].toPrecision(6)));
      input.parentElement.querySelector("output").textContent = value;
      input.setAttribute("aria-valuetext", value);
    }
    const result = panel.querySelector(".result");
    result.replaceChildren();
    const kept = rows(found.about, bounds);
    const keptBefore = rows(found.about, found.bounds);
    if (found.exact) {
      const left = rows(found.exact, bounds);
      result.append(part("b", grouped(left)), ` pairs${change(left, rows(found.exact, found.bounds))} `);
      result.append(data.compares ? "reach the first criterion that compares pairs (exact)." : "are kept (exact).");
    }
    if (!found.exact || data.compares) {
      result.append(found.exact ? " About " : "About ", part("b", grouped(kept)), ` are kept${change(kept, keptBefore)}, `);
      result.append("if the groups of near-duplicates stay the same; danqing decide searches for them again.");
    }
    const unknown = rows(found.unknown, bounds);
    if (unknown) {
      result.append(` ${grouped(unknown)} more pairs lack later scores, because this criterion dropped them during scoring. `);
      result.append("To judge them, score again with --score-everything.");
    }
    const article = panel.closest(".criterion");
    for (const [key, index] of Object.entries(bounds)) {
      const line = article.querySelector(`line[data-moved="${key}"]`);
      if (!line) continue;
      const at = Number(line.dataset.left) + found.at[key][index] * Number(line.dataset.width);
      line.setAttribute("x1", at);
      line.setAttribute("x2", at);
      line.style.visibility = index === found.bounds[key] ? "hidden" : "visible";
    }
    const different = Object.entries(bounds).filter(([key, index]) => index !== found.bounds[key]);
    if (different.length) moved.set(panel.dataset.criterion, Object.fromEntries(different));
    else moved.delete(panel.dataset.criterion);
    showChanges();
  }

  // The folder of this page, if it was opened from a disk: the command then works from any folder.
  function folder() {
    if (location.protocol !== "file:") return data.folder;
    const path = decodeURIComponent(location.pathname).replace(/\/[^/]*$/, "");
    if (path.split("/").pop() !== data.name) return data.folder;
    return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\"'\"'")}'`;
  }

  const joint = data?.joint && {
    criteria: data.joint.criteria,
    codes: new Uint16Array(Uint8Array.from(atob(data.joint.codes), (c) => c.charCodeAt(0)).buffer),
  };

  // Rows that pass all criteria before the first that compares pairs, with all changes; null if they are not in the page.
  // A code is the number of values below the score plus the number up to it.
  function together() {
    if (!joint || ![...moved.keys()].every((name) => joint.criteria.includes(name))) return null;
    const count = joint.codes.length / joint.criteria.length;
    const passes = new Uint8Array(count).fill(1);
    joint.criteria.forEach((name, at) => {
      for (const [key, index] of Object.entries({ ...data.criteria[name].bounds, ...moved.get(name) })) {
        for (let row = 0; row < count; row++) {
          const code = joint.codes[at * count + row];
          const values = key === "min" || key === "below" ? (code + 1) >> 1 : code >> 1;
          if (SIDES[key] ? values > index : values <= index) passes[row] = 0;
        }
      }
    });
    return passes.reduce((sum, pass) => sum + pass, 0);
  }

  function allChanges() {
    const count = together();
    if (count === null) return "Each count above changes one criterion only. This command makes all changes:";
    const looser = ([name, bounds]) =>
      Object.entries(bounds).some(([key, index]) => (index > data.criteria[name].bounds[key]) === Boolean(SIDES[key]));
    const gated = data.joint.gated && [...moved].some(looser);
    const end = data.compares ? "reach the first criterion that compares pairs" : "are kept";
    return `With all changes, ${grouped(count)} pairs ${end} (exact${gated ? ", without pairs that lack later scores" : ""}):`;
  }

  function showChanges() {
    const bar = document.querySelector(".changes");
    bar.classList.toggle("shown", moved.size > 0);
    const settings = [];
    for (const [name, bounds] of moved) {
      const found = data.criteria[name];
      for (const [key, index] of Object.entries(bounds)) {
        settings.push(` --set ${found.settings[key]}=${found.values[index]}`);
      }
    }
    bar.querySelector(".command").textContent = `danqing decide ${folder()}${data.given}${settings.join("")}`;
    bar.querySelector(".note").textContent =
      moved.size > 1 ? allChanges() : "Command for this threshold:";
  }

  async function copy(button) {
    const command = document.querySelector(".changes .command");
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    } catch {
      getSelection().selectAllChildren(command); // the clipboard may be refused; the text can be copied by hand
    }
  }

  function reset(panel) {
    const found = data.criteria[panel.dataset.criterion];
    for (const input of panel.querySelectorAll("input")) input.value = found.bounds[input.dataset.bound];
    show(panel);
  }

  if (data) {
    const panels = [...document.querySelectorAll(".what-if[data-criterion]")];
    for (const panel of panels) {
      const found = data.criteria[panel.dataset.criterion];
      for (const input of panel.querySelectorAll("input")) input.max = found.values.length - 1;
      panel.hidden = false;
      reset(panel);
      panel.addEventListener("input", () => show(panel));
    }
    document.querySelector('[data-do="copy"]').addEventListener("click", (event) => copy(event.currentTarget));
    document.querySelector('[data-do="reset"]').addEventListener("click", () => panels.forEach(reset));
  }

  document.addEventListener("click", (event) => {
    const veil = event.target.closest(".veil");
    if (!veil) return;
    const picture = veil.parentElement;
    picture.classList.remove("veiled");
    picture.querySelector("img").removeAttribute("aria-hidden");
    veil.remove();
  });
})();

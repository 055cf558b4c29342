// The console without this file is complete: links, forms and a reload. With it, one stream of server-sent events
// replaces the fragments of the page in place.
"use strict";

(() => {
  const RETRY_MS = 3000;
  const MAX_LINES = 500;
  const status = document.getElementById("live");
  let stream = null;
  let retryTimer = 0;

  function show(state, text) {
    if (!status) return;
    status.dataset.state = state;
    status.querySelector(".text").textContent = text;
  }

  // Make the children of `old` equal to those of `fresh`; keep elements that have a counterpart, and so focus,
  // scroll positions and what a reader has typed or opened.
  function patchChildren(old, fresh) {
    const keyed = new Map();
    for (const child of old.children) if (child.dataset.key) keyed.set(child.dataset.key, child);
    let place = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      const key = wanted.nodeType === Node.ELEMENT_NODE ? wanted.dataset.key : undefined;
      let node = key ? keyed.get(key) : place;
      if (!node || !isSame(node, wanted)) {
        old.insertBefore(wanted, place);
        continue;
      }
      if (node !== place) old.insertBefore(node, place);
      place = node.nextSibling;
      patch(node, wanted);
    }
    while (place) {
      const next = place.nextSibling;
      place.remove();
      place = next;
    }
  }

  function isSame(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return false;
    return old.nodeType !== Node.ELEMENT_NODE || old.dataset.key === fresh.dataset.key;
  }

  function patch(old, fresh) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    if (old.isEqualNode(fresh) || old.matches("input, select, textarea")) return;
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    }
    patchChildren(old, fresh);
  }

  function parsed(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    return template.content;
  }

  // Rows of a table keep their places, so that a click hits the row it was aimed at: a row that is no longer
  // listed stays and says so, and new rows come last. A reload sorts again.
  function keepPlaces(old, fresh) {
    for (const body of fresh.querySelectorAll("tbody[data-stable]")) {
      const before = old.querySelector(`tbody[data-stable="${CSS.escape(body.dataset.stable)}"]`);
      if (!before) continue;
      const rows = new Map([...body.children].map((row) => [row.dataset.key, row]));
      const limit = Number(body.dataset.rows) || before.children.length;
      const kept = [...before.children].map((row) => {
        const now = rows.get(row.dataset.key);
        rows.delete(row.dataset.key);
        if (now) return now;
        const gone = row.cloneNode(true);
        gone.classList.add("gone");
        [...gone.cells].slice(1).forEach((cell, place) => cell.replaceChildren(place ? "" : "not listed"));
        return gone;
      });
      // If there is no room, new rows take the places of those that are gone.
      let left = 0;
      for (const row of rows.values()) {
        const free = kept.findIndex((one) => one.classList.contains("gone"));
        if (kept.length < limit) kept.push(row);
        else if (free >= 0) kept[free] = row;
        else left += 1;
      }
      body.replaceChildren(...kept);
      const more = document.getElementById(`more-${body.dataset.stable}`);
      if (more) more.hidden = left === 0;
    }
  }

  function replaceFragment({ id, html }) {
    const old = document.getElementById(id);
    if (!old) return;
    const fresh = parsed(html);
    keepPlaces(old, fresh);
    patchChildren(old, fresh);
  }

  function appendLines({ id, html }) {
    const lines = document.getElementById(id);
    if (!lines) return;
    const box = lines.closest(".tail");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const heightBefore = box.scrollHeight;
    while (lines.children.length > MAX_LINES) lines.firstElementChild.remove();
    box.scrollTop -= heightBefore - box.scrollHeight;
    window.requestAnimationFrame(() => {
      lines.append(parsed(html));
      document.getElementById("tail-empty")?.setAttribute("hidden", "");
      if (atEnd) box.scrollTop = box.scrollHeight;
    });
  }

  function open() {
    window.clearTimeout(retryTimer);
    if (stream || document.hidden) return;
    stream = new EventSource(window.location.href);
    stream.addEventListener("fragment", (event) => replaceFragment(JSON.parse(event.data)));
    stream.addEventListener("lines", (event) => appendLines(JSON.parse(event.data)));
    stream.addEventListener("ready", () => show("live", "Live"));
    stream.addEventListener("trouble", (event) => show("retry", JSON.parse(event.data).text));
    stream.addEventListener("error", () => {
      show("retry", "Reconnecting");
      if (stream && stream.readyState === EventSource.CLOSED) {
        close();
        retryTimer = window.setTimeout(open, RETRY_MS);
      }
    });
  }

  function close() {
    if (stream) stream.close();
    stream = null;
  }

  function pause() {
    close();
    window.clearTimeout(retryTimer);
    show("paused", "Paused");
  }

  if (status) {
    const button = document.getElementById("live-toggle");
    let stopped = false;
    status.hidden = false;
    button.hidden = false;
    button.addEventListener("click", () => {
      stopped = !stopped;
      button.textContent = stopped ? "Continue" : "Pause";
      if (stopped) pause();
      else open();
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) pause();
      else if (!stopped) open();
    });
    window.addEventListener("pagehide", close);
    window.addEventListener("pageshow", (event) => {
      if (event.persisted && !stopped) open();
    });
    open();
  }

  document.addEventListener("keydown", (event) => {
    const field = document.querySelector("[data-search]");
    if (event.key !== "/" || !field || event.target.closest("input, select, textarea")) return;
    event.preventDefault();
    field.focus();
  });

  window.addEventListener("pageshow", () => {
    for (const form of document.forms) delete form.dataset.sent;
  });

  // A form is sent once, however often its button is pressed.
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "post") return;
    if (event.target.dataset.sent) event.preventDefault();
    event.target.dataset.sent = "yes";
  });
})();

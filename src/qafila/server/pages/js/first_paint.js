// Runs before the first paint, as a classic script: language, direction and theme must be right from the first frame.
(() => {
  let saved = {};
  try {
    saved = JSON.parse(localStorage.getItem("qafila.settings") || "{}");
  } catch {
    // Storage may be forbidden; the system's own preferences then decide.
  }
  const system = (navigator.language || "en").toLowerCase().startsWith("ar") ? "ar" : "en";
  const language = saved.language || system;
  document.documentElement.lang = language;
  document.documentElement.dir = language === "ar" ? "rtl" : "ltr";
  if (saved.theme === "light" || saved.theme === "dark") document.documentElement.dataset.theme = saved.theme;
})();

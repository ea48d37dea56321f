// Sets the theme before anything is drawn; a classic script, because modules run too late for that.
"use strict";
try {
  const theme = localStorage.getItem("pixtral.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // storage is switched off: the system's theme it is
}

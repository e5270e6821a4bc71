// Applies the chosen theme before the page is drawn; without a choice, the browser's holds.
try {
  const theme = localStorage.getItem('bitnet.theme');
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  /* The browser keeps nothing. */
}

// Words as the server compares them, which keyboards and models write in several ways.

/** What a word is made of, joiners within it, too. */
export const LETTERS = "[\\p{L}\\p{M}\\p{N}\\u200c\\u200d]";

/** The text with each letter in one form (NFC) and without joiners, which change how Bengali is drawn, not what it says. */
export const comparable = (text: string) => text.normalize("NFC").replace(/[\u200c\u200d]/g, "");

"""The few names and words that a recogniser starts from; everything else it learns from the corpus it reads."""

from __future__ import annotations


def _listed(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.replace("\n", " ").split(",") if part.strip())


TITLES = _listed("""
Mr, Mrs, Ms, Miss, Dr, Prof, Professor, Sir, Lord, Lady, Dame, Madame, Mme, Monsieur, Herr, Frau, Captain, Capt,
Colonel, Col, General, Gen, Major, Lieutenant, Lt, Sergeant, Sgt, Admiral, President, Senator, Sen, Representative,
Rep, Governor, Gov, Mayor, Judge, Justice, Minister, Secretary, Chancellor, King, Queen, Prince, Princess, Duke,
Duchess, Count, Countess, Baron, Emperor, Pope, Father, Rev, Reverend, Bishop, Saint, Uncle, Aunt, Aunty
""")

FIRST_NAMES = _listed("""
James, John, Robert, Michael, William, David, Richard, Joseph, Thomas, Charles, Christopher, Daniel, Matthew,
Anthony, Mark, Donald, Steven, Paul, Andrew, Joshua, Kenneth, Kevin, Brian, George, Edward, Ronald, Timothy, Jason,
Jeffrey, Ryan, Jacob, Gary, Nicholas, Eric, Jonathan, Stephen, Larry, Justin, Scott, Brandon, Benjamin, Samuel,
Gregory, Frank, Alexander, Raymond, Patrick, Jack, Dennis, Jerry, Tyler, Aaron, Jose, Adam, Nathan, Henry, Douglas,
Peter, Zachary, Kyle, Walter, Harold, Jeremy, Ethan, Carl, Keith, Roger, Arthur, Lawrence, Albert, Joe, Bill, Bob,
Jim, Tom, Dave, Mike, Steve, Dan, Tim, Ben, Sam, Fred, Ted, Philip, Francis, Louis, Mary, Patricia, Jennifer, Linda,
Elizabeth, Barbara, Susan, Jessica, Sarah, Karen, Nancy, Lisa, Betty, Margaret, Sandra, Ashley, Kimberly, Emily,
Donna, Michelle, Dorothy, Carol, Amanda, Melissa, Deborah, Stephanie, Rebecca, Laura, Helen, Sharon, Cynthia,
Kathleen, Amy, Angela, Anna, Ruth, Brenda, Pamela, Nicole, Katherine, Catherine, Samantha, Christine, Emma, Janet,
Maria, Heather, Diane, Julie, Joyce, Victoria, Kelly, Christina, Joan, Evelyn, Olivia, Judith, Megan, Martha,
Andrea, Hannah, Jacqueline, Alice, Jane, Kate, Lucy, Lily, Ahmed, Ali, Mohammed, Muhammad, Omar, Hassan, Juan,
Carlos, Luis, Pedro, Jean, Pierre, Hans, Karl, Ivan, Vladimir, Wei, Hiroshi, Raj
""")

PLACES = _listed("""
Afghanistan, Africa, Algeria, America, Argentina, Asia, Australia, Austria, Bangladesh, Belgium, Bolivia, Brazil,
Britain, Great Britain, Bulgaria, Canada, Chile, China, Colombia, Cuba, Denmark, Egypt, England, Ethiopia, Europe,
Finland, France, Germany, Ghana, Greece, Hungary, Iceland, India, Indonesia, Iran, Iraq, Ireland, Israel, Italy,
Jamaica, Japan, Jordan, Kenya, Korea, North Korea, South Korea, Kuwait, Lebanon, Libya, Malaysia, Mexico, Morocco,
Nepal, Netherlands, New Zealand, Nigeria, Norway, Pakistan, Palestine, Panama, Peru, Philippines, Poland, Portugal,
Romania, Russia, Saudi Arabia, Scotland, Serbia, Singapore, Somalia, South Africa, Soviet Union, Spain, Sudan,
Sweden, Switzerland, Syria, Taiwan, Thailand, Turkey, Uganda, Ukraine, United Kingdom, United States, UK, US, USA,
U.S., U.S.A., U.K., Venezuela, Vietnam, Wales, Yemen, Zimbabwe, Alabama, Alaska, Arizona, California, Colorado,
Connecticut, Florida, Hawaii, Illinois, Indiana, Iowa, Kansas, Kentucky, Louisiana, Maine, Maryland, Massachusetts,
Michigan, Minnesota, Mississippi, Missouri, Montana, Nebraska, Nevada, New Hampshire, New Jersey, New Mexico, New
York, North Carolina, Ohio, Oklahoma, Oregon, Pennsylvania, South Carolina, Tennessee, Texas, Utah, Vermont,
Virginia, Wisconsin, Wyoming, London, Paris, Berlin, Rome, Madrid, Vienna, Moscow, Tokyo, Beijing, Shanghai, Hong
Kong, Delhi, Mumbai, Cairo, Baghdad, Tehran, Jerusalem, Boston, Chicago, Houston, Dallas, Atlanta, Seattle, Los
Angeles, San Francisco, Philadelphia, Detroit, Miami, Toronto, Montreal, Sydney, Melbourne, Amsterdam, Brussels,
Geneva, Dublin, Edinburgh, Manchester, Liverpool, Oxford, Cambridge, Venice, Florence, Athens, Constantinople,
Istanbul, Gaza, Middle East
""")

PLACE_HEADS = _listed("""
River, Lake, Sea, Ocean, Bay, Gulf, Mountain, Mountains, Mount, Hill, Hills, Valley, Island, Islands, Isle, Desert,
Forest, Park, Street, Road, Avenue, Square, Bridge, County, City, Town, Village, Province, State, Territory,
Republic, Kingdom, Coast, Peninsula, Cape, Beach, Falls, Canal, Airport, Station, Harbor, Harbour
""")

ORGANISATION_HEADS = _listed("""
Inc, Corp, Corporation, Ltd, Plc, Co, Company, LLC, Group, Bank, University, College, School, Institute, Department,
Dept, Ministry, Agency, Bureau, Office, Committee, Commission, Council, Board, Court, Parliament, Congress, Senate,
House, Party, Association, Society, Union, Federation, League, Foundation, Trust, Church, Hospital, Army, Navy,
Force, Press, Times, Post, Journal, News, Club, Center, Centre, Organization, Organisation, Authority,
Administration, Services, Systems, Industries, Partners, Airlines, Airways, Motors, Railway, Museum, Academy, Guard,
Assembly, Network, Laboratory, Labs, Restaurant, Hotel
""")

ORGANISATIONS = _listed("""
UN, NATO, NASA, CIA, FBI, IBM, BBC, CNN, EU, European Union, United Nations, Google, Microsoft, Apple, Amazon,
Facebook, Intel, Sony, Toyota, Ford, Enron, Reuters, Associated Press, White House, Pentagon, Al Qaeda, Hamas,
Hezbollah, OPEC, IMF, World Bank, Red Cross, GSA, EPA, FDA, USDA, Yahoo, AT&T, Wikipedia, Twitter, YouTube, GitHub,
Mozilla
""")

OTHERS = _listed("""
American, British, English, French, German, Italian, Spanish, Russian, Chinese, Japanese, Indian, Irish, Scottish,
Welsh, Dutch, Swedish, Norwegian, Danish, Polish, Greek, Turkish, Arab, Arabic, Jewish, Christian, Catholic,
Protestant, Muslim, Islamic, Iraqi, Iranian, Israeli, Palestinian, Egyptian, Mexican, Canadian, Australian, African,
Asian, European, Western, Roman, Latin, Hebrew, Republican, Democrat, Democratic, Communist, Soviet, Korean,
Vietnamese, Afghan, Syrian, Saudi, Cuban, Brazilian, Austrian, Belgian, God, Bible, Internet, Web, Earth, Christmas,
Easter, Thanksgiving, Halloween, I, PM, AM, TV, PC, DVD, CD, OK, DNA, URL, HTML, XML, API, JSON, PDF, FAQ, Windows,
Linux, Android, Java, Python, Rust, Ms, Mr
""")

MONTHS = _listed("""
January, February, March, April, May, June, July, August, September, October, November, December, Jan, Feb, Mar,
Apr, Jun, Jul, Aug, Sep, Sept, Oct, Nov, Dec
""")

DAYS = _listed(
    """Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Mon, Tue, Tues, Wed, Thu, Thurs, Fri, Sat, Sun"""
)

# Words that are no names however they are spelled
SMALL_WORDS = _listed("""
a, an, the, and, or, but, if, in, on, at, to, for, of, with, by, from, as, is, are, was, were, be, been, it, its,
this, that, these, those, he, she, they, we, you, his, her, their, our, your, my, i, not, no, yes, so, then, there,
here, when, where, what, who, why, how, which, while, after, before, since, because, although, though, however,
also, all, some, any, many, most, more, much, one, two, three, first, last, new, now, just, only, even, still, very,
can, could, will, would, should, may, might, must, do, does, did, has, have, had, please, thanks, thank, hi, hello,
dear, let, get, go, see, use, well, oh, ok, perhaps, each, every, both, other, another, such, same, under, over,
about, into, through, during, between, against, among
""")
